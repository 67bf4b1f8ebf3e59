rule fetch:
    input:
        inputs_of("models/{model}"),
    output:
        f"{RESULTS}/models/{{model}}/digest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}.tsv"
    wildcard_constraints:
        model=one_of("fetch"),
    retries: 3
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    params:
        cfg=cfg_of("models/{model}"),
    shell:
        "$OPD_GPU -m opd fetch --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule init:
    input:
        inputs_of("models/{model}/s{seed}"),
    output:
        f"{RESULTS}/models/{{model}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/s{{seed}}.tsv"
    wildcard_constraints:
        model=one_of("init"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("init", "cpu"),
    params:
        cfg=cfg_of("models/{model}/s{seed}"),
    shell:
        "$OPD_GPU -m opd init --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule sft:
    input:
        inputs_of("models/{model}/s{seed}"),
    output:
        f"{RESULTS}/models/{{model}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/s{{seed}}.tsv"
    wildcard_constraints:
        model=one_of("sft"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("sft", "devices"),
    params:
        cfg=cfg_of("models/{model}/s{seed}"),
    shell:
        "$OPD_GPU -m opd sft --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule grpo:
    input:
        inputs_of("models/{model}/s{seed}"),
    output:
        f"{RESULTS}/models/{{model}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/s{{seed}}.tsv"
    wildcard_constraints:
        model=one_of("grpo"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("grpo", "devices"),
    params:
        cfg=cfg_of("models/{model}/s{seed}"),
    shell:
        "$OPD_GPU -m opd grpo --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule opd:
    input:
        inputs_of("models/{model}/s{seed}"),
    output:
        f"{RESULTS}/models/{{model}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/s{{seed}}.tsv"
    wildcard_constraints:
        model=one_of("opd"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("opd", "devices"),
    params:
        cfg=cfg_of("models/{model}/s{seed}"),
    shell:
        "$OPD_GPU -m opd opd --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule keep:
    input:
        inputs_of("models/{model}/s{seed}"),
    output:
        f"{RESULTS}/models/{{model}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/s{{seed}}.tsv"
    wildcard_constraints:
        model=one_of("keep"),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("keep", "light"),
    params:
        cfg=cfg_of("models/{model}/s{seed}"),
    shell:
        "$OPD_LIGHT -m opd keep --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"
