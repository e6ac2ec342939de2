# Rules that fetch or pretrain CLIP weights and write them to one canonical file.


rule fetch_backbone:
    output:
        "<results>/backbones/{backbone}.safetensors",
    log:
        "<logs>/fetch_backbone/{backbone}.log",
    benchmark:
        "<benchmarks>/fetch_backbone/{backbone}.tsv"
    wildcard_constraints:
        backbone=closed(STUDY.backbones_made_by("fetch-backbone")),
    retries: 0 if config["offline"] else 2
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=5000,  # 4.0 GB were measured for ViT-L/14
        runtime="2h",
    params:
        digest=backbone_digest,
        study=untracked(STUDY.path),
        weights_root=untracked(config["weights_root"]),
        offline=untracked("--offline" if config["offline"] else ""),
        cache=untracked(config["cache"]),
    message:
        "Fetching {wildcards.backbone}"
    shell:
        "blocklora fetch-backbone --study {params.study:q} --backbone {wildcards.backbone}"
        " --weights-root {params.weights_root:q} {params.offline} --cache {params.cache:q}"
        " --key {params.digest} --output {output:q} > {log:q} 2>&1"


rule pretrain_backbone:
    output:
        "<results>/backbones/{backbone}.safetensors",
    log:
        "<logs>/pretrain_backbone/{backbone}.log",
    benchmark:
        "<benchmarks>/pretrain_backbone/{backbone}.tsv"
    wildcard_constraints:
        backbone=closed(STUDY.backbones_made_by("pretrain-backbone")),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime="30m",
    params:
        digest=backbone_digest,
        study=untracked(STUDY.path),
        cache=untracked(config["cache"]),
    message:
        "Pretraining {wildcards.backbone} on drawn images"
    shell:
        "blocklora pretrain-backbone --study {params.study:q} --backbone {wildcards.backbone}"
        " --threads {threads} --cache {params.cache:q} --key {params.digest} --output {output:q}"
        " > {log:q} 2>&1"
