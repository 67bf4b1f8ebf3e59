rule pair:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("pair"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("pair", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_GPU -m opd pair --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule continuation:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("continuation"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("continuation", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd continuation --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule prefix:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("prefix"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("prefix", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd prefix --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule signal:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("signal"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("signal", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_GPU -m opd signal --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule judge:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("judge"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("judge", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd judge --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule indicators:
    input:
        inputs_of("probes/{probe}/s{seed}"),
    output:
        f"{RESULTS}/probes/{{probe}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/probes/{{probe}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{probe}}/s{{seed}}.tsv"
    wildcard_constraints:
        probe=one_of("indicators"),
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("indicators", "device"),
    params:
        cfg=cfg_of("probes/{probe}/s{seed}"),
    shell:
        "$OPD_VLLM -m opd indicators --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"
