rule figure:
    input:
        inputs_of("figures/{figure}"),
    output:
        digest=f"{RESULTS}/figures/{{figure}}/digest.json",
        png=report(
            f"{RESULTS}/figures/{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        svg=f"{RESULTS}/figures/{{figure}}.svg",
    log:
        f"{RESULTS}/logs/figures/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/{{figure}}.tsv"
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("figure", "light"),
    params:
        cfg=cfg_of("figures/{figure}"),
        said=said_of("figures/{figure}"),
    shell:
        "$OPD_LIGHT -m opd figure --cfg {params.cfg:q} --input {input} --output {output.digest}"
        f" --plan {PLAN}"
        " --copy figure.png={output.png} figure.svg={output.svg} > {log} 2>&1"


rule table:
    input:
        inputs_of("tables/{table}"),
    output:
        digest=f"{RESULTS}/tables/{{table}}/digest.json",
        csv=report(
            f"{RESULTS}/tables/{{table}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        md=f"{RESULTS}/tables/{{table}}.md",
    log:
        f"{RESULTS}/logs/tables/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tables/{{table}}.tsv"
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("table", "light"),
    params:
        cfg=cfg_of("tables/{table}"),
    shell:
        "$OPD_LIGHT -m opd table --cfg {params.cfg:q} --input {input} --output {output.digest}"
        f" --plan {PLAN}"
        " --copy table.csv={output.csv} table.md={output.md} > {log} 2>&1"


rule claims:
    input:
        inputs_of("claims"),
    output:
        digest=f"{RESULTS}/claims/digest.json",
        html=report(
            f"{RESULTS}/claims.html",
            caption="../report/claims.rst",
            category="Claims",
        ),
        json=f"{RESULTS}/claims.json",
        md=f"{RESULTS}/claims.md",
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("claims", "light"),
    params:
        cfg=cfg_of("claims"),
    shell:
        "$OPD_LIGHT -m opd claims --cfg {params.cfg:q} --input {input} --output {output.digest}"
        f" --plan {PLAN}"
        " --copy claims.html={output.html} claims.json={output.json} claims.md={output.md}"
        " > {log} 2>&1"


rule report:
    input:
        inputs_of("report"),
    output:
        digest=f"{RESULTS}/report/digest.json",
        html=report(
            f"{RESULTS}/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("report", "light"),
    params:
        cfg=cfg_of("report"),
    shell:
        # It lists every run: with a few seeds too long for one argument of a program.
        "$OPD_LIGHT -m opd report --cfg <(printf %s {params.cfg:q}) --input {input}"
        " --output {output.digest} --copy report.html={output.html} > {log} 2>&1"
