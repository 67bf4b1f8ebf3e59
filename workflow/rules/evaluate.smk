rule evaluate:
    input:
        inputs_of("evaluations/{evaluation}/{model}/s{seed}"),
    output:
        f"{RESULTS}/evaluations/{{evaluation}}/{{model}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/evaluations/{{evaluation}}/{{model}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluations/{{evaluation}}/{{model}}/s{{seed}}.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("evaluate", "device"),
    params:
        cfg=cfg_of("evaluations/{evaluation}/{model}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd evaluate --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"
