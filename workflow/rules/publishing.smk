# From the runs to tables, figures and verdicts on the claims.

FOLDER_OF = {"table": "", "figure": "{backbone}/"}


rule aggregate:
    input:
        [run_files(run) for run in STUDY.runs()],
    output:
        report(
            "<results>/runs.csv",
            caption="../report/runs.rst",
            category="Runs",
        ),
    log:
        "<logs>/aggregate.log",
    benchmark:
        "<benchmarks>/aggregate.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        made_from=RESULTS_DIGEST,
        code=code_digest("blocklora.runs.aggregate", "blocklora.runs.columns"),
        study=untracked(STUDY.path),
        results=untracked(RESULTS),
    message:
        "Collecting the runs"
    shell:
        "blocklora aggregate --study {params.study:q} --results {params.results:q} > {log:q} 2>&1"


# All tables are written by one process, and all figures are drawn by one. A single one that is
# asked for by its path is made alone, by a rule of its own.
rule tables:
    input:
        evidence(TABLES),
    output:
        [file for item in TABLES for file in table_files(item)],
    log:
        "<logs>/tables.log",
    benchmark:
        "<benchmarks>/tables.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        title=STUDY.title,
        made_from=STUDY.digest,
        code=[publishing_code(item.module) for item in TABLES],
        study=untracked(STUDY.path),
        results=untracked(RESULTS),
    message:
        "Writing all tables"
    shell:
        "blocklora publish tables --study {params.study:q} --results {params.results:q}"
        " > {log:q} 2>&1"


rule figures:
    input:
        evidence(FIGURES),
    output:
        [
            file
            for backbone in STUDY.backbones
            for item in FIGURES
            for file in figure_files(item, backbone)
        ],
    log:
        "<logs>/figures.log",
    benchmark:
        "<benchmarks>/figures.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        title=STUDY.title,
        made_from=STUDY.digest,
        code=[publishing_code(item.module) for item in FIGURES],
        study=untracked(STUDY.path),
        results=untracked(RESULTS),
    message:
        "Drawing all figures"
    shell:
        "blocklora publish figures --study {params.study:q} --results {params.results:q}"
        " > {log:q} 2>&1"


for item in TABLES + FIGURES:

    rule:
        name:
            item.rule
        input:
            evidence_if_alone(item),
        output:
            table_files(item) if item.kind == "table" else figure_files(item, "{backbone}"),
        log:
            f"<logs>/{item.kind}/{FOLDER_OF[item.kind]}{item.name}.log",
        benchmark:
            f"<benchmarks>/{item.kind}/{FOLDER_OF[item.kind]}{item.name}.tsv"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime="10m",
        params:
            item=item.arguments,
            kind=item.kind,
            backbone="--backbone {wildcards.backbone}" if item.kind == "figure" else "",
            title=STUDY.title,
            made_from=STUDY.digest,
            code=publishing_code(item.module),
            study=untracked(STUDY.path),
            results=untracked(RESULTS),
        message:
            "Making the {params.kind} {params.item}"
        shell:
            "blocklora {params.kind} {params.item} --study {params.study:q}"
            " --results {params.results:q} {params.backbone} --output {output:q} > {log:q} 2>&1"

    workflow.ruleorder(item.rule, f"{item.kind}s")


rule claims:
    input:
        [f"<results>/{evidence_file(name)}" for name in CLAIMS_NEED],
    output:
        json="<results>/claims.json",
        csv="<results>/claims.csv",
        md="<results>/claims.md",
        html=report(
            "<results>/claims.html",
            caption="../report/claims.rst",
            category="Claims",
        ),
    log:
        "<logs>/claims.log",
    benchmark:
        "<benchmarks>/claims.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        title=STUDY.title,
        made_from=STUDY.digest,
        code=publishing_code("blocklora.publish.verdicts"),
        study=untracked(STUDY.path),
        results=untracked(RESULTS),
    message:
        "Judging the claims"
    shell:
        "blocklora claims --study {params.study:q} --results {params.results:q}"
        " --output {output:q} > {log:q} 2>&1"
