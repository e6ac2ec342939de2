# From the runs to tables, figures and verdicts.


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
        code=code_digest("blocklora.publish"),
        study=untracked(STUDY.path),
        runs=untracked(f"{RESULTS}/runs"),
    message:
        "Collecting the runs"
    shell:
        "blocklora aggregate --study {params.study:q} --runs {params.runs:q} --output {output:q}"
        " > {log:q} 2>&1"


rule fewshot_table:
    input:
        "<results>/runs.csv",
    output:
        multiext("<results>/tables/fewshot-{shots}shot", ".csv", ".md", ".tex"),
        html=report(
            "<results>/tables/fewshot-{shots}shot.html",
            caption="../report/fewshot.rst",
            category="Accuracy",
            labels={"item": "table of {shots}-shot accuracy"},
        ),
    log:
        "<logs>/fewshot_table/{shots}shot.log",
    benchmark:
        "<benchmarks>/fewshot_table/{shots}shot.tsv"
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
        code=code_digest("blocklora.publish"),
        study=untracked(STUDY.path),
    message:
        "Writing the table of {wildcards.shots}-shot accuracy"
    shell:
        "blocklora table fewshot --study {params.study:q} --aggregate {input:q}"
        " --shots {wildcards.shots} --published --output {output:q} > {log:q} 2>&1"


for name, (category, names) in TABLES.items():

    rule:
        name:
            f"table_{name}"
        input:
            **evidence(names),
        output:
            multiext(f"<results>/tables/{name}", ".csv", ".md", ".tex"),
            html=report(
                f"<results>/tables/{name}.html",
                caption=f"../report/{name}.rst",
                category=category,
                labels={"item": f"table of {name}"},
            ),
        log:
            f"<logs>/table/{name}.log",
        benchmark:
            f"<benchmarks>/table/{name}.tsv"
        group:
            "publish"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime="10m",
        params:
            name=name,
            study_digest=STUDY.digest,
            code=code_digest("blocklora.publish"),
            study=untracked(STUDY.path),
            inputs=as_options,
        message:
            "Writing the table {params.name}"
        shell:
            "blocklora table {params.name} --study {params.study:q} {params.inputs}"
            " --output {output:q} > {log:q} 2>&1"


for name, (category, names) in FIGURES.items():

    rule:
        name:
            f"figure_{name}"
        input:
            **evidence(names),
        output:
            pdf=f"<results>/figures/{{backbone}}/{name}.pdf",
            csv=f"<results>/figures/{{backbone}}/{name}.csv",
            png=report(
                f"<results>/figures/{{backbone}}/{name}.png",
                caption=f"../report/{name}.rst",
                category=category,
                labels={"item": f"figure of {name}, {{backbone}}"},
            ),
        log:
            f"<logs>/figure/{{backbone}}/{name}.log",
        benchmark:
            f"<benchmarks>/figure/{{backbone}}/{name}.tsv"
        group:
            "publish"
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime="10m",
        params:
            name=name,
            study_digest=STUDY.digest,
            code=code_digest("blocklora.publish"),
            study=untracked(STUDY.path),
            inputs=as_options,
        message:
            "Drawing the figure {params.name} of {wildcards.backbone}"
        shell:
            "blocklora figure {params.name} --study {params.study:q} {params.inputs}"
            " --backbone {wildcards.backbone} --published --output {output:q} > {log:q} 2>&1"


rule claims:
    input:
        **evidence([name for name in EVIDENCE if name != "overlaps"]),
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
        code=code_digest("blocklora.publish"),
        study=untracked(STUDY.path),
        inputs=as_options,
    message:
        "Judging the claims"
    shell:
        "blocklora claims --study {params.study:q} {params.inputs} --output {output:q}"
        " > {log:q} 2>&1"
