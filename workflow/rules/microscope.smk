rule demonstrate:
    input:
        inputs_of("demonstrations/{demos}/s{seed}"),
    output:
        f"{RESULTS}/demonstrations/{{demos}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/demonstrations/{{demos}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/demonstrations/{{demos}}/s{{seed}}.tsv"
    wildcard_constraints:
        demos=one_of("demonstrate"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("demonstrate", "device"),
    params:
        cfg=cfg_of("demonstrations/{demos}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd demonstrate --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule summarise:
    input:
        inputs_of("demonstrations/{demos}/s{seed}"),
    output:
        f"{RESULTS}/demonstrations/{{demos}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/demonstrations/{{demos}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/demonstrations/{{demos}}/s{{seed}}.tsv"
    wildcard_constraints:
        demos=one_of("summarise"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("summarise", "device"),
    params:
        cfg=cfg_of("demonstrations/{demos}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd summarise --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule screening:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("screening"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("screening", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd screening --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule tree:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("tree"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("tree", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd tree --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule alignment:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("alignment"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("alignment", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_GPU -m opd alignment --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule pool:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("pool"),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("pool", "light"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_LIGHT -m opd pool --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule forecast:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("forecast"),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("forecast", "light"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_LIGHT -m opd forecast --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule outcome:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("outcome"),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("outcome", "light"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_LIGHT -m opd outcome --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"
