# Fits and tests, and the gate that zero-shot accuracy has to pass before them.


# A method that is not trained has no shots, no seeds and no fit.
rule test_untrained:
    input:
        backbone="<results>/backbones/{backbone}.safetensors",
        manifest="<results>/data/{dataset}/manifest.csv",
        pixels=test_pixels,
    output:
        "<results>/runs/{backbone}/{dataset}/{method}/0shot/seed0/tests/{dataset}/test.safetensors",
    log:
        "<logs>/test/{backbone}/{dataset}/{method}.log",
    benchmark:
        "<benchmarks>/test/{backbone}/{dataset}/{method}.tsv"
    wildcard_constraints:
        method=closed(name for name in STUDY.methods if name not in STUDY.fitted_methods),
    conda:
        "../../environment.yml"
    threads: max(1, WORKERS)
    resources:
        gpu=GPUS,
        mem_mb=growing(8000),
        runtime="1h",
    params:
        digests=untrained_digests,
        how=how_to_compute,
    message:
        "Testing {wildcards.method} of {wildcards.backbone} on {wildcards.dataset}"
    shell:
        "blocklora test {params.how} --backbone {wildcards.backbone}"
        " --dataset {wildcards.dataset} --method {wildcards.method}"
        " --backbone-file {input.backbone:q} --manifest {input.manifest:q}"
        " --test-pixels {input.pixels:q} > {log:q} 2>&1"


# A check decides no number: neither its code nor its mode makes anything be done again.
rule gate:
    input:
        f"<results>/runs/{{backbone}}/{{dataset}}/{STUDY.zero_shot}/0shot/seed0/tests/{{dataset}}/test.safetensors",
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
        "blocklora gate --predictions {input:q} --backbone {wildcards.backbone}"
        " --dataset {wildcards.dataset} --mode {params.mode} --output {output:q} > {log:q} 2>&1"


# One rule for each kind of method and group of seeds that share a process. It fits what is not
# fitted and tests what is not tested. Files marked by update() are not deleted before the job, and
# come back if it fails.
for kind, methods in fitted_kinds().items():
    for label, seeds in SEED_GROUPS.items():

        rule:
            name:
                f"fit_{kind}_seeds_{label}"
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
                update(fit_files(kind, seeds)),
            log:
                f"<logs>/fit/{{backbone}}/{{dataset}}/{{method}}/{{shots}}shot-seeds{label}.log",
            benchmark:
                f"<benchmarks>/fit/{{backbone}}/{{dataset}}/{{method}}/{{shots}}shot-seeds{label}.tsv"
            wildcard_constraints:
                method=closed(methods),
            conda:
                "../../environment.yml"
            threads: max(1, WORKERS)
            resources:
                gpu=GPUS,
                mem_mb=growing(8000),
                runtime="8h",
            params:
                digests=fits_digests(seeds),
                seeds=seeds,
                how=how_to_compute,
                checkpoints=untracked(f"{RESULTS}/checkpoints"),
            message:
                "Fitting {wildcards.method} on {wildcards.dataset}, {wildcards.shots} shots, "
                "seeds {params.seeds}"
            shell:
                "blocklora fit {params.how} --backbone {wildcards.backbone}"
                " --dataset {wildcards.dataset} --method {wildcards.method}"
                " --shots {wildcards.shots} --seeds {params.seeds}"
                " --backbone-file {input.backbone:q} --manifest {input.manifest:q}"
                " --test-pixels {input.pixels:q} --shots-lists {input.shots:q}"
                " --shots-pixels {input.shots_pixels:q} --checkpoints {params.checkpoints:q}"
                " > {log:q} 2>&1"


# What was fitted on one dataset, on the test images of another one.
rule test_elsewhere:
    input:
        fit="<results>/runs/{backbone}/{dataset}/{method}/{shots}shot/seed{seed}/fit.json",
        backbone="<results>/backbones/{backbone}.safetensors",
        manifest="<results>/data/{tested}/manifest.csv",
        pixels=tested_pixels,
    output:
        "<results>/runs/{backbone}/{dataset}/{method}/{shots}shot/seed{seed}/tests/{tested}/test.safetensors",
    log:
        "<logs>/test/{backbone}/{dataset}/{method}/{shots}shot-seed{seed}-{tested}.log",
    benchmark:
        "<benchmarks>/test/{backbone}/{dataset}/{method}/{shots}shot-seed{seed}-{tested}.tsv"
    wildcard_constraints:
        tested=rf"(?!(?P=dataset)/)(?:{closed(STUDY.datasets)})",
    conda:
        "../../environment.yml"
    threads: max(1, WORKERS)
    resources:
        gpu=GPUS,
        mem_mb=growing(8000),
        runtime="1h",
    params:
        digest=elsewhere_digest,
        how=how_to_compute,
    message:
        "Testing {wildcards.method} of {wildcards.dataset} on {wildcards.tested}"
    shell:
        "blocklora test {params.how} --backbone {wildcards.backbone} --dataset {wildcards.tested}"
        " --fitted-on {wildcards.dataset} --method {wildcards.method} --shots {wildcards.shots}"
        " --seeds {wildcards.seed} --backbone-file {input.backbone:q}"
        " --manifest {input.manifest:q} --test-pixels {input.pixels:q} > {log:q} 2>&1"
