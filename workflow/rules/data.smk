rule prompts:
    input:
        inputs_of("prompts/{prompts}"),
    output:
        f"{RESULTS}/prompts/{{prompts}}/digest.json",
    log:
        f"{RESULTS}/logs/prompts/{{prompts}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prompts/{{prompts}}.tsv"
    wildcard_constraints:
        prompts=one_of("prompts", hub=False),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("prompts", "light"),
    params:
        cfg=cfg_of("prompts/{prompts}"),
    shell:
        "$OPD_LIGHT -m opd prompts --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


# What asks the hub runs where the workflow was started: nodes of a cluster may not reach it. Only
# these rules have retries of their own, as a job on a cluster would apply them once more inside.
rule download:
    input:
        inputs_of("prompts/{prompts}"),
    output:
        f"{RESULTS}/prompts/{{prompts}}/digest.json",
    log:
        f"{RESULTS}/logs/prompts/{{prompts}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prompts/{{prompts}}.tsv"
    wildcard_constraints:
        prompts=one_of("prompts", hub=True),
    retries: 3
    conda:
        "../../envs/workflow.yaml"
    params:
        cfg=cfg_of("prompts/{prompts}"),
    shell:
        "$OPD_LIGHT -m opd prompts --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule embed:
    input:
        inputs_of("embeddings/{encoder}/{prompts}"),
    output:
        f"{RESULTS}/embeddings/{{encoder}}/{{prompts}}/digest.json",
    log:
        f"{RESULTS}/logs/embeddings/{{encoder}}/{{prompts}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/embeddings/{{encoder}}/{{prompts}}.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("embed", "device"),
    params:
        cfg=cfg_of("embeddings/{encoder}/{prompts}"),
    shell:
        "$OPD_GPU -m opd embed --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule neighbours:
    input:
        inputs_of("neighbours/{encoder}/{prompts}/{against}"),
    output:
        f"{RESULTS}/neighbours/{{encoder}}/{{prompts}}/{{against}}/digest.json",
    log:
        f"{RESULTS}/logs/neighbours/{{encoder}}/{{prompts}}/{{against}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/neighbours/{{encoder}}/{{prompts}}/{{against}}.tsv"
    conda:
        "../../envs/gpu.yaml"
    threads: CONFIG.threads
    resources:
        **of("neighbours", "cpu"),
    params:
        cfg=cfg_of("neighbours/{encoder}/{prompts}/{against}"),
    shell:
        "$OPD_GPU -m opd neighbours --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule dedup:
    input:
        inputs_of("prompts/{prompts}"),
    output:
        digest=f"{RESULTS}/prompts/{{prompts}}/digest.json",
        html=report(
            f"{RESULTS}/prompts/{{prompts}}.html",
            caption="../report/dedup.rst",
            category="Prompts",
            labels={"prompts": "{prompts}"},
        ),
    log:
        f"{RESULTS}/logs/prompts/{{prompts}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prompts/{{prompts}}.tsv"
    wildcard_constraints:
        prompts=one_of("dedup"),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("dedup", "light"),
    params:
        cfg=cfg_of("prompts/{prompts}"),
    shell:
        "$OPD_LIGHT -m opd dedup --cfg {params.cfg:q} --input {input} --output {output.digest}"
        " --copy dedup.html={output.html} > {log} 2>&1"


rule contamination:
    input:
        inputs_of("contamination/{contamination}"),
    output:
        digest=f"{RESULTS}/contamination/{{contamination}}/digest.json",
        html=report(
            f"{RESULTS}/contamination/{{contamination}}.html",
            caption="../report/contamination.rst",
            category="Prompts",
            labels={"contamination": "{contamination}"},
        ),
    log:
        f"{RESULTS}/logs/contamination/{{contamination}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/contamination/{{contamination}}.tsv"
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("contamination", "light"),
    params:
        cfg=cfg_of("contamination/{contamination}"),
    shell:
        "$OPD_LIGHT -m opd contamination --cfg {params.cfg:q} --input {input}"
        " --output {output.digest} --copy contamination.html={output.html} > {log} 2>&1"


rule corpus:
    input:
        inputs_of("sft_data/{data}"),
    output:
        f"{RESULTS}/sft_data/{{data}}/digest.json",
    log:
        f"{RESULTS}/logs/sft_data/{{data}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sft_data/{{data}}.tsv"
    wildcard_constraints:
        data=one_of("corpus"),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("corpus", "light"),
    params:
        cfg=cfg_of("sft_data/{data}"),
    shell:
        "$OPD_LIGHT -m opd corpus --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule filter:
    input:
        inputs_of("sft_data/{data}/s{seed}"),
    output:
        f"{RESULTS}/sft_data/{{data}}/s{{seed}}/digest.json",
    log:
        f"{RESULTS}/logs/sft_data/{{data}}/s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sft_data/{{data}}/s{{seed}}.tsv"
    wildcard_constraints:
        data=one_of("filter"),
    conda:
        "../../envs/workflow.yaml"
    resources:
        **of("filter", "cpu"),
    params:
        cfg=cfg_of("sft_data/{data}/s{seed}"),
    shell:
        "$OPD_LIGHT -m opd filter --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"


rule dataset:
    input:
        inputs_of("datasets/{benchmark}"),
    output:
        f"{RESULTS}/datasets/{{benchmark}}/digest.json",
    log:
        f"{RESULTS}/logs/datasets/{{benchmark}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/datasets/{{benchmark}}.tsv"
    retries: 3
    conda:
        "../../envs/workflow.yaml"
    params:
        cfg=cfg_of("datasets/{benchmark}"),
    shell:
        "$OPD_LIGHT -m opd dataset --cfg {params.cfg:q} --input {input} --output {output}"
        " > {log} 2>&1"
