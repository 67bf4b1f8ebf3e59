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
