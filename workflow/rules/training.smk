# Rules that fit and test methods, and the gate that zero-shot accuracy has to pass before any fit.

LOG_OF = {
    "dataset": "{dataset}",
    "shots": "{dataset}/{shots}shot",
    "run": "{dataset}/{shots}shot/{method}-seed{seed}",
}


# A method without training has no shots, no seeds and no fit, only a test.
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
        "Testing {wildcards.method} with {wildcards.backbone} on {wildcards.dataset}"
    shell:
        "blocklora test {params.how} --backbone {wildcards.backbone}"
        " --dataset {wildcards.dataset} --method {wildcards.method} > {log:q} 2>&1"


# The gate decides no number, so a change of its code or mode redoes nothing.
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


# One rule for each unit: dataset, shots, run. A single run may also be asked for by its path. A job
# fits and tests only what is missing. Files marked with update() are not deleted before the job
# starts, and are restored if it fails.
for unit in UNITS:
    for kind, patterns in runs_in(unit):

        rule:
            name:
                f"fit_{unit}_{kind}".removesuffix("_")
            input:
                unpack(fit_inputs(unit)),
            output:
                update(fitted_files(kind, patterns)),
            log:
                f"<logs>/fit/{{backbone}}/{LOG_OF[unit]}.log",
            benchmark:
                f"<benchmarks>/fit/{{backbone}}/{LOG_OF[unit]}.tsv"
            wildcard_constraints:
                backbone=closed_by_unit(unit),
                method=closed(n for n in STUDY.fitted_methods if STUDY.methods[n].kind == kind),
            conda:
                "../../environment.yml"
            threads: max(1, WORKERS)
            resources:
                gpu=GPUS,
                mem_mb=growing(8000),
                runtime=fit_runtime,
            params:
                outdated=outdated,
                which=which_fits,
                how=how_to_compute,
                missing=missing_fits,
            message:
                "Fitting {params.missing} on {wildcards.dataset}, or taking them from the cache, see {log}"
            shell:
                "blocklora fit {params.how} --backbone {wildcards.backbone}"
                " --dataset {wildcards.dataset} {params.which} > {log:q} 2>&1"


# A run that is asked for by its path is made alone, so the rule for single runs comes first.
FIT_RULES = [f"fit_{unit}_{kind}".removesuffix("_") for unit in UNITS for kind, _ in runs_in(unit)]
workflow.ruleorder(*reversed(FIT_RULES))


# Tests a run that was fitted on one dataset on the test images of another one.
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
        "Testing {wildcards.method}, fitted on {wildcards.dataset}, on {wildcards.tested}"
    shell:
        "blocklora test {params.how} --backbone {wildcards.backbone} --dataset {wildcards.tested}"
        " --fitted-on {wildcards.dataset} --method {wildcards.method} --shots {wildcards.shots}"
        " --seeds {wildcards.seed} > {log:q} 2>&1"
