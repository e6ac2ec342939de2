# Targets that make a part of a study, for example `snakemake runs`. `tables` and `figures` are
# others.


# The only steps that need the network.
rule fetch:
    input:
        expand("<results>/data/{dataset}/source.json", dataset=STUDY.datasets),
        expand("<results>/backbones/{backbone}.safetensors", backbone=STUDY.backbones),


rule data:
    input:
        expand("<results>/data/{dataset}/verification.json", dataset=STUDY.datasets),
        expand(
            "<results>/shots/{dataset}/{shots}shot/seed{seed}.csv",
            dataset=STUDY.datasets,
            shots=STUDY.shots,
            seed=STUDY.seeds,
        ),


rule runs:
    input:
        [run_files(run) for run in STUDY.runs()],
        [f"<results>/runs/{test.file}" for test in further_tests(STUDY)],


# The benchmark of this machine. No result depends on it.
rule bench:
    output:
        json="<results>/bench.json",
        page="<results>/bench.md",
    log:
        "<logs>/bench.log",
    benchmark:
        "<benchmarks>/bench.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        gpu=GPUS,
        mem_mb=growing(16000),
        runtime="2h",
    params:
        device=untracked(DEVICE),
    message:
        "Measuring the engines"
    shell:
        "blocklora bench --device {params.device} --threads {threads} --output {output.json:q}"
        " --page {output.page:q} > {log:q} 2>&1"
