# From the runs to tables, figures and verdicts: a rule for each item of the catalogue.


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
        study_digest=STUDY.digest,
        code=code_digest("blocklora.runs.aggregate", "blocklora.runs.columns"),
        study=untracked(STUDY.path),
        runs=untracked(f"{RESULTS}/runs"),
    message:
        "Collecting the runs"
    shell:
        "blocklora aggregate --study {params.study:q} --runs {params.runs:q} --output {output:q}"
        " > {log:q} 2>&1"


for item in TABLES:

    rule:
        name:
            item.rule
        input:
            [f"<results>/{file}" for file in item.files(STUDY)],
        output:
            multiext(f"<results>/tables/{item.name}", ".csv", ".md", ".tex"),
            html=report(
                f"<results>/tables/{item.name}.html",
                caption=caption(item),
                category=item.section,
                labels={"item": f"table of {item.name}"},
            ),
        log:
            f"<logs>/table/{item.name}.log",
        benchmark:
            f"<benchmarks>/table/{item.name}.tsv"
        group:
            "publish"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime="10m",
        params:
            item=item.arguments,
            study_digest=STUDY.digest,
            code=publishing_code(item.module),
            study=untracked(STUDY.path),
            results=untracked(RESULTS),
        message:
            "Writing the table {params.item}"
        shell:
            "blocklora table {params.item} --study {params.study:q} --results {params.results:q}"
            " --output {output:q} > {log:q} 2>&1"


for item in FIGURES:

    rule:
        name:
            item.rule
        input:
            [f"<results>/{file}" for file in item.files(STUDY)],
        output:
            pdf=f"<results>/figures/{{backbone}}/{item.name}.pdf",
            csv=f"<results>/figures/{{backbone}}/{item.name}.csv",
            png=report(
                f"<results>/figures/{{backbone}}/{item.name}.png",
                caption=caption(item),
                category=item.section,
                labels={"item": f"figure of {item.name}, {{backbone}}"},
            ),
        log:
            f"<logs>/figure/{{backbone}}/{item.name}.log",
        benchmark:
            f"<benchmarks>/figure/{{backbone}}/{item.name}.tsv"
        group:
            "publish"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime="10m",
        params:
            item=item.arguments,
            study_digest=STUDY.digest,
            code=publishing_code(item.module),
            study=untracked(STUDY.path),
            results=untracked(RESULTS),
        message:
            "Drawing the figure {params.item} of {wildcards.backbone}"
        shell:
            "blocklora figure {params.item} --study {params.study:q} --results {params.results:q}"
            " --backbone {wildcards.backbone} --output {output:q} > {log:q} 2>&1"


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
    group:
        "publish"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        study_digest=STUDY.digest,
        code=publishing_code("blocklora.publish.verdicts"),
        study=untracked(STUDY.path),
        results=untracked(RESULTS),
    message:
        "Judging the claims"
    shell:
        "blocklora claims --study {params.study:q} --results {params.results:q}"
        " --output {output:q} > {log:q} 2>&1"
