# Zero-shot accuracy, the gate it has to pass, and the runs.


rule zero_shot:
    input:
        backbone="<results>/backbones/{backbone}.safetensors",
        manifest="<results>/data/{dataset}/manifest.csv",
        pixels=test_pixels,
    output:
        f"<results>/runs/{{backbone}}/{{dataset}}/{STUDY.zero_shot}/0shot/seed0/metrics.json",
    log:
        "<logs>/zero_shot/{backbone}/{dataset}.log",
    benchmark:
        "<benchmarks>/zero_shot/{backbone}/{dataset}.tsv"
    conda:
        "../../environment.yml"
    threads: max(1, WORKERS)
    resources:
        gpu=GPUS,
        mem_mb=growing(8000),
        runtime="1h",
    params:
        digest=zero_shot_digest,
        study=untracked(STUDY.path),
        runs=untracked(f"{RESULTS}/runs"),
        scratch=untracked(["--scratch", config["scratch"]] if config["scratch"] else []),
        device=untracked(DEVICE),
        workers=untracked(WORKERS),
        precision=untracked(config["precision"]),
    message:
        "Testing {wildcards.backbone} on {wildcards.dataset} without training"
    shell:
        "blocklora zero-shot --study {params.study:q} --backbone {wildcards.backbone}"
        " --dataset {wildcards.dataset} --backbone-file {input.backbone:q}"
        " --manifest {input.manifest:q} --test-pixels {input.pixels:q} --runs {params.runs:q}"
        " {params.scratch:q} --device {params.device} --precision {params.precision}"
        " --workers {params.workers}"
        " > {log:q} 2>&1"


# A check decides no number: neither its code nor its mode makes anything be done again.
rule gate:
    input:
        f"<results>/runs/{{backbone}}/{{dataset}}/{STUDY.zero_shot}/0shot/seed0/metrics.json",
    output:
        "<results>/gates/{backbone}/{dataset}.json",
    log:
        "<logs>/gate/{backbone}/{dataset}.log",
    benchmark:
        "<benchmarks>/gate/{backbone}/{dataset}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
        runtime="5m",
    params:
        mode=untracked(config["gate"]),
    message:
        "Comparing the zero-shot accuracy on {wildcards.dataset} with the known one"
    shell:
        "blocklora gate --metrics {input:q} --backbone {wildcards.backbone}"
        " --dataset {wildcards.dataset} --mode {params.mode} --output {output:q} > {log:q} 2>&1"


# One rule for each group of seeds that share a process; each seed has files of its own. Files marked
# by update() are not deleted before the job, and come back if it fails.
for label, seeds in SEED_GROUPS.items():

    rule:
        name:
            f"train_seeds_{label}"
        input:
            gate="<results>/gates/{backbone}/{dataset}.json",
            backbone="<results>/backbones/{backbone}.safetensors",
            manifest="<results>/data/{dataset}/manifest.csv",
            pixels=test_pixels,
            shots=expand("<results>/shots/{{dataset}}/{{shots}}shot/seed{seed}.csv", seed=seeds),
            shots_pixels=expand(
                "<results>/pixels/{{dataset}}/{{shots}}shot/seed{seed}.npz", seed=seeds
            ),
        output:
            update(
                expand(
                    "<results>/runs/{{backbone}}/{{dataset}}/{{method}}/{{shots}}shot/seed{seed}/{file}",
                    seed=seeds,
                    file=["metrics.json", "history.csv", "adapter.safetensors"],
                )
            ),
        log:
            f"<logs>/train/{{backbone}}/{{dataset}}/{{method}}/{{shots}}shot-seeds{label}.log",
        benchmark:
            f"<benchmarks>/train/{{backbone}}/{{dataset}}/{{method}}/{{shots}}shot-seeds{label}.tsv"
        conda:
            "../../environment.yml"
        threads: max(1, WORKERS)
        resources:
            gpu=GPUS,
            mem_mb=growing(8000),
            runtime="8h",
        params:
            digests=run_digests(seeds),
            seeds=seeds,
            study=untracked(STUDY.path),
            runs=untracked(f"{RESULTS}/runs"),
            checkpoints=untracked(f"{RESULTS}/checkpoints"),
            scratch=untracked(["--scratch", config["scratch"]] if config["scratch"] else []),
            device=untracked(DEVICE),
            workers=untracked(WORKERS),
            precision=untracked(config["precision"]),
            engine=untracked(config["engine"]),
        message:
            "Training {wildcards.method} on {wildcards.dataset}, {wildcards.shots} shots, "
            "seeds {params.seeds}"
        shell:
            "blocklora train --study {params.study:q} --backbone {wildcards.backbone}"
            " --dataset {wildcards.dataset} --method {wildcards.method} --shots {wildcards.shots}"
            " --seeds {params.seeds} --backbone-file {input.backbone:q}"
            " --manifest {input.manifest:q} --test-pixels {input.pixels:q}"
            " --shots-lists {input.shots:q} --shots-pixels {input.shots_pixels:q}"
            " --runs {params.runs:q} --checkpoints {params.checkpoints:q}"
            " {params.scratch:q} --device {params.device}"
            " --precision {params.precision} --engine {params.engine}"
            " --workers {params.workers} > {log:q} 2>&1"
