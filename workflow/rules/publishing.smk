# From the runs to tables, figures and verdicts.


rule aggregate:
    input:
        [run_files(run)[0] for run in STUDY.runs()],
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
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        study_digest=STUDY.digest,
        code=code_digest("publish"),
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
            labels={"item": "table", "shots": "{shots}"},
        ),
    log:
        "<logs>/fewshot_table/{shots}shot.log",
    benchmark:
        "<benchmarks>/fewshot_table/{shots}shot.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        study_digest=STUDY.digest,
        code=code_digest("publish"),
        study=untracked(STUDY.path),
    message:
        "Writing the few-shot table of {wildcards.shots} shots"
    shell:
        "blocklora table fewshot --study {params.study:q} --aggregate {input:q}"
        " --shots {wildcards.shots} --published --output {output:q} > {log:q} 2>&1"


rule table:
    input:
        unpack(published_inputs),
    output:
        multiext("<results>/tables/{name}", ".csv", ".md", ".tex"),
        html=report(
            "<results>/tables/{name}.html",
            caption="../report/{name}.rst",
            category=category,
            labels={"item": "table", "name": "{name}"},
        ),
    log:
        "<logs>/table/{name}.log",
    benchmark:
        "<benchmarks>/table/{name}.tsv"
    wildcard_constraints:
        name=closed(TABLES),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        study_digest=STUDY.digest,
        code=code_digest("publish"),
        study=untracked(STUDY.path),
        inputs=as_options,
    message:
        "Writing the table {wildcards.name}"
    shell:
        "blocklora table {wildcards.name} --study {params.study:q} {params.inputs}"
        " --output {output:q} > {log:q} 2>&1"


rule figure:
    input:
        unpack(published_inputs),
    output:
        pdf="<results>/figures/{backbone}/{name}.pdf",
        csv="<results>/figures/{backbone}/{name}.csv",
        png=report(
            "<results>/figures/{backbone}/{name}.png",
            caption="../report/{name}.rst",
            category=category,
            labels={"item": "figure", "name": "{name}", "backbone": "{backbone}"},
        ),
    log:
        "<logs>/figure/{backbone}/{name}.log",
    benchmark:
        "<benchmarks>/figure/{backbone}/{name}.tsv"
    wildcard_constraints:
        name=closed(FIGURES),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="10m",
    params:
        study_digest=STUDY.digest,
        code=code_digest("publish"),
        study=untracked(STUDY.path),
        inputs=as_options,
        published=published_curves,
    message:
        "Drawing the figure {wildcards.name} of {wildcards.backbone}"
    shell:
        "blocklora figure {wildcards.name} --study {params.study:q} {params.inputs}"
        " --backbone {wildcards.backbone} {params.published} --output {output:q} > {log:q} 2>&1"


rule claims:
    input:
        **PUBLISHED_FILES,
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
        study_digest=STUDY.digest,
        code=code_digest("publish"),
        study=untracked(STUDY.path),
        inputs=as_options,
    message:
        "Judging the claims"
    shell:
        "blocklora claims --study {params.study:q} {params.inputs} --output {output:q}"
        " > {log:q} 2>&1"
