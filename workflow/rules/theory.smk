# What can be said about the runs: bounds, measured gaps, spectra, compressed size, cost.


rule bounds:
    input:
        unpack(described_inputs),
    output:
        "<results>/theory/bounds.csv",
    log:
        "<logs>/bounds.log",
    benchmark:
        "<benchmarks>/bounds.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        study_digest=STUDY.digest,
        code=code_digest("blocklora.theory"),
        study=untracked(STUDY.path),
    message:
        "Computing the bounds"
    shell:
        "blocklora bounds --study {params.study:q} --manifests {input.manifests:q}"
        " --output {output:q} > {log:q} 2>&1"


rule gaps:
    input:
        aggregate="<results>/runs.csv",
        bounds="<results>/theory/bounds.csv",
    output:
        "<results>/theory/gaps.csv",
    log:
        "<logs>/gaps.log",
    benchmark:
        "<benchmarks>/gaps.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
        runtime="10m",
    params:
        code=code_digest("blocklora.theory"),
    message:
        "Comparing measured gaps with the bounds"
    shell:
        "blocklora gaps --aggregate {input.aggregate:q} --bounds {input.bounds:q}"
        " --output {output:q} > {log:q} 2>&1"


rule spectra:
    input:
        aggregate="<results>/runs.csv",
        adapters=ADAPTERS,
    output:
        spectra="<results>/theory/spectra.csv",
        overlaps="<results>/theory/overlaps.csv",
    log:
        "<logs>/spectra.log",
    benchmark:
        "<benchmarks>/spectra.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime="1h",
    params:
        study_digest=STUDY.digest,
        code=code_digest("blocklora.theory"),
        study=untracked(STUDY.path),
        runs=untracked(f"{RESULTS}/runs"),
    message:
        "Computing the spectra of the trained updates"
    shell:
        "blocklora spectra --study {params.study:q} --aggregate {input.aggregate:q}"
        " --runs {params.runs:q} --output {output.spectra:q} --overlaps {output.overlaps:q} > {log:q} 2>&1"


rule compression:
    input:
        aggregate="<results>/runs.csv",
        adapters=ADAPTERS,
        backbones=expand("<results>/backbones/{name}.safetensors", name=STUDY.backbones),
        manifests=expand("<results>/data/{name}/manifest.csv", name=STUDY.datasets),
        shots_pixels=expand(
            "<results>/pixels/{dataset}/{shots}shot/seed{seed}.npz",
            dataset=STUDY.datasets,
            shots=STUDY.shots,
            seed=STUDY.seeds,
        ),
    output:
        "<results>/theory/compression.csv",
    log:
        "<logs>/compression.log",
    benchmark:
        "<benchmarks>/compression.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPUS,
        mem_mb=growing(8000),
        runtime="8h",
    params:
        study_digest=STUDY.digest,
        code=code_digest("blocklora.theory"),
        precision=config["precision"],
        study=untracked(STUDY.path),
        results=untracked(RESULTS),
        device=untracked(DEVICE),
    message:
        "Computing compression bounds of the trained adapters"
    shell:
        "blocklora compression --study {params.study:q} --aggregate {input.aggregate:q}"
        " --results {params.results:q} --device {params.device} --precision {params.precision}"
        " --output {output:q} > {log:q} 2>&1"


rule efficiency:
    input:
        unpack(described_inputs),
    output:
        "<results>/theory/efficiency.csv",
    log:
        "<logs>/efficiency.log",
    benchmark:
        "<benchmarks>/efficiency.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=growing(8000),
        runtime="1h",
    params:
        study_digest=STUDY.digest,
        code=code_digest("blocklora.theory"),
        precision=config["precision"],
        study=untracked(STUDY.path),
    message:
        "Computing what LoRA and Block-LoRA cost"
    shell:
        "blocklora efficiency --study {params.study:q} --manifests {input.manifests:q}"
        " --precision {params.precision} --output {output:q} > {log:q} 2>&1"
