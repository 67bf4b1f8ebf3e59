# Rules of the stages that write files for people: beside an artifact's folder, under its name. The
# first of them is in Snakemake's own report, too.


for page in ("dedup", "contamination", "report"):

    rule:
        name:
            page
        input:
            inputs_of(STAGES[page].folder),
        output:
            digest=f"{RESULTS}/{STAGES[page].folder}/digest.json",
            html=in_report(page, "html"),
        log:
            f"{RESULTS}/logs/{STAGES[page].folder}.log",
        wildcard_constraints:
            **names_of(page),
        conda:
            environment(page)
        resources:
            **of(page),
        params:
            cfg=cfg_of(STAGES[page].folder),
            stage=page,
        shell:
            # The report lists every run: with a few seeds too long for one argument of a program.
            'exec "$OPD_PYTHON_{params.stage}" -m opd stage {params.stage} --cfg <(printf %s {params.cfg:q})'
            " --input {input:q} --output {output.digest:q}"
            " --copy {params.stage}.html={output.html:q} > {log:q} 2>&1"


rule figure:
    input:
        inputs_of("figures/{figure}"),
    output:
        digest=f"{RESULTS}/figures/{{figure}}/digest.json",
        png=in_report("figure", "png"),
        svg=f"{RESULTS}/figures/{{figure}}.svg",
    log:
        f"{RESULTS}/logs/figures/{{figure}}.log",
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("figure"),
    params:
        cfg=cfg_of("figures/{figure}"),
        said=said_of("figures/{figure}"),
    shell:
        'exec "$OPD_PYTHON_figure" -m opd stage figure --cfg {params.cfg:q} --input {input:q}'
        f" --output {{output.digest:q}} --plan {PLAN}"
        " --copy figure.png={output.png:q} figure.svg={output.svg:q} > {log:q} 2>&1"


rule table:
    input:
        inputs_of("tables/{table}"),
    output:
        digest=f"{RESULTS}/tables/{{table}}/digest.json",
        csv=in_report("table", "csv"),
        md=f"{RESULTS}/tables/{{table}}.md",
    log:
        f"{RESULTS}/logs/tables/{{table}}.log",
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("table"),
    params:
        cfg=cfg_of("tables/{table}"),
        said=said_of("tables/{table}"),
    shell:
        'exec "$OPD_PYTHON_table" -m opd stage table --cfg {params.cfg:q} --input {input:q}'
        f" --output {{output.digest:q}} --plan {PLAN}"
        " --copy table.csv={output.csv:q} table.md={output.md:q} > {log:q} 2>&1"


rule claims:
    input:
        inputs_of("claims"),
    output:
        digest=f"{RESULTS}/claims/digest.json",
        html=in_report("claims", "html"),
        json=f"{RESULTS}/claims.json",
        md=f"{RESULTS}/claims.md",
    log:
        f"{RESULTS}/logs/claims.log",
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("claims"),
    params:
        cfg=cfg_of("claims"),
    shell:
        'exec "$OPD_PYTHON_claims" -m opd stage claims --cfg {params.cfg:q} --input {input:q}'
        f" --output {{output.digest:q}} --plan {PLAN}"
        " --copy claims.html={output.html:q} claims.json={output.json:q} claims.md={output.md:q}"
        " > {log:q} 2>&1"
