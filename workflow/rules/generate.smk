rule generate:
    input:
        inputs_of("generations/{generation}/s{seed}"),
    output:
        f"{RESULTS}/generations/{{generation}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/generations/{{generation}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generations/{{generation}}/s{{seed}}.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("generate", "devices" if CONFIG.backend == "vllm" else "device"),
    params:
        cfg=cfg_of("generations/{generation}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd generate --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"
