# Rules that find, list, verify, sample and decode the images of a dataset.


rule fetch_dataset:
    output:
        "<results>/data/{dataset}/source.json",
    log:
        "<logs>/fetch_dataset/{dataset}.log",
    benchmark:
        "<benchmarks>/fetch_dataset/{dataset}.tsv"
    retries: 0 if config["offline"] else 2
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="24h",
    params:
        digest=of_dataset(digests.images_digest),
        study=untracked(STUDY.path),
        data_root=untracked(config["data_root"]),
        offline=untracked("--offline" if config["offline"] else ""),
    message:
        "Fetching {wildcards.dataset}"
    shell:
        "blocklora fetch-dataset --study {params.study:q} --dataset {wildcards.dataset}"
        " --data-root {params.data_root:q} {params.offline} --output {output:q} > {log:q} 2>&1"


rule make_manifest:
    input:
        source="<results>/data/{dataset}/source.json",
        own=own_csv,
    output:
        "<results>/data/{dataset}/manifest.csv",
    log:
        "<logs>/make_manifest/{dataset}.log",
    benchmark:
        "<benchmarks>/make_manifest/{dataset}.tsv"
    group:
        "manifest"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        digest=of_dataset(digests.listing_digest),
        cache=untracked(config["cache"]),
    message:
        "Listing the images of {wildcards.dataset}"
    shell:
        "blocklora make-manifest --source {input.source:q} --cache {params.cache:q}"
        " --key {params.digest} --output {output:q} > {log:q} 2>&1"


rule verify_data:
    input:
        source="<results>/data/{dataset}/source.json",
        manifest="<results>/data/{dataset}/manifest.csv",
    output:
        "<results>/data/{dataset}/verification.json",
    log:
        "<logs>/verify_data/{dataset}.log",
    benchmark:
        "<benchmarks>/verify_data/{dataset}.tsv"
    group:
        "manifest"
    conda:
        "../../environment.yml"
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime="4h",
    params:
        cache=untracked(config["cache"]),
        digest=verification_digest,
    message:
        "Verifying {wildcards.dataset}"
    shell:
        "blocklora verify-data --source {input.source:q} --manifest {input.manifest:q}"
        " --workers {threads} --cache {params.cache:q} --key {params.digest} --output {output:q}"
        " > {log:q} 2>&1"


rule shots:
    input:
        "<results>/data/{dataset}/manifest.csv",
    output:
        of_lists(places.shots_list),
    log:
        "<logs>/shots/{dataset}.log",
    benchmark:
        "<benchmarks>/shots/{dataset}.tsv"
    group:
        "lists"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        digest=of_dataset(digests.shots_digest),
        shots=untracked(STUDY.shots),
        seeds=untracked(STUDY.seeds),
        cache=untracked(config["cache"]),
    message:
        "Drawing the shots of {wildcards.dataset}"
    shell:
        "blocklora shots --manifest {input:q} --shots {params.shots} --seeds {params.seeds}"
        " --cache {params.cache:q} --key {params.digest} --output {output:q} > {log:q} 2>&1"


rule decode_test:
    input:
        source="<results>/data/{dataset}/source.json",
        verification="<results>/data/{dataset}/verification.json",
        manifest="<results>/data/{dataset}/manifest.csv",
    output:
        "<results>/pixels/{dataset}/test-{size}px.npy",
    log:
        "<logs>/decode_test/{dataset}-{size}px.log",
    benchmark:
        "<benchmarks>/decode_test/{dataset}-{size}px.tsv"
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        mem_mb=growing(4000),
        runtime="2h",
    params:
        digest=of_dataset(digests.test_pixels_digest),
        budget=config["pixel_budget_gb"],
        cache=untracked(config["cache"]),
    message:
        "Decoding the test images of {wildcards.dataset}"
    shell:
        "blocklora decode-images --source {input.source:q} --manifest {input.manifest:q}"
        " --size {wildcards.size} --pixel-budget-gb {params.budget} --workers {threads}"
        " --cache {params.cache:q} --key {params.digest} --output {output:q} > {log:q} 2>&1"


rule decode_shots:
    input:
        source="<results>/data/{dataset}/source.json",
        verification="<results>/data/{dataset}/verification.json",
        shots=of_lists(places.shots_list),
    output:
        of_lists(places.shots_pixels),
    log:
        "<logs>/decode_shots/{dataset}.log",
    benchmark:
        "<benchmarks>/decode_shots/{dataset}.tsv"
    group:
        "lists"
    conda:
        "../../environment.yml"
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime="4h",
    params:
        digest=of_dataset(digests.shots_pixels_digest),
        budget=config["pixel_budget_gb"],
        cache=untracked(config["cache"]),
    message:
        "Decoding the shots of {wildcards.dataset}"
    shell:
        "blocklora decode-images --source {input.source:q} --shots-lists {input.shots:q}"
        " --pixel-budget-gb {params.budget} --workers {threads} --cache {params.cache:q}"
        " --key {params.digest} --output {output:q} > {log:q} 2>&1"
