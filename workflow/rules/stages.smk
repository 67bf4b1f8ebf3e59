# A rule for each stage, named as the stage. Stages that write files for people are in shown.smk.
#
# A command holds no variable of the loop: Snakemake looks it up when the job runs, and the loop has
# gone on by then.


for name, stage in {
    **{stage: stage for stage in STAGES if stage not in {*SHOWN, *ONLINE}},
    **ONLINE,
}.items():

    rule:
        name:
            name
        input:
            inputs_of(STAGES[stage].folder),
        output:
            f"{RESULTS}/{STAGES[stage].folder}/digest.json",
        log:
            f"{RESULTS}/logs/{STAGES[stage].folder}.log",
        wildcard_constraints:
            **names_of(stage, online=name in ONLINE),
        # What reads kept steps goes before what trains more of them, so that they can go.
        priority: 1 if RELEASED and not STAGES[stage].trains else 0
        retries: 3 if name in ONLINE else None
        conda:
            environment(stage)
        threads: threads_of(stage)
        resources:
            **({} if name in ONLINE else of(stage)),
        params:
            cfg=cfg_of(STAGES[stage].folder),
            stage=stage,
        shell:
            'exec "$OPD_PYTHON_{params.stage}" -m opd stage {params.stage} --cfg {params.cfg:q}'
            " --input {input:q} --output {output:q} > {log:q} 2>&1"


# The weights of a kept step go when all that reads them is made. Its artifact stays.
rule release:
    input:
        readers_of,
    output:
        f"{RESULTS}/models/{{model}}/s{{seed}}/released.json",
    log:
        f"{RESULTS}/logs/released/{{model}}/s{{seed}}.log",
    priority: 1
    conda:
        environment("keep")
    params:
        folder=f"{RESULTS}/models/{{model}}/s{{seed}}",
    shell:
        '"$OPD_PYTHON_keep" -m opd.stages.removal {params.folder:q} results/.store > {log:q} 2>&1'
