# One rule for each measure of the theory: bounds, measured gaps, spectra, compression, efficiency.

# The files for each word in `Measure.needs`.
NEEDED_FILES = {
    "runs": "<results>/runs.csv",
    "adapters": [
        f"<results>/runs/{run.folder}/{ADAPTER_FILE}"
        for run in STUDY.runs()
        if run.method in STUDY.adapter_methods
    ],
    "weights": expand("<results>/backbones/{name}.safetensors", name=STUDY.backbones),
    "manifests": expand("<results>/data/{name}/manifest.csv", name=STUDY.datasets),
    "shots_pixels": expand(
        f"<results>/{places.shots_pixels('{dataset}', '{shots}', '{seed}')}",
        dataset=STUDY.datasets,
        shots=STUDY.shots,
        seed=STUDY.seeds,
    ),
    # Manifests of datasets whose number of classes or prompt lengths are not known beforehand.
    "class_counts": expand("<results>/data/{name}/manifest.csv", name=STUDY.local_datasets),
    "prompts": expand("<results>/data/{name}/manifest.csv", name=unlisted_datasets(STUDY)),
    # A measure may need the table of another measure.
    **{table: f"<results>/theory/{table}.csv" for measure in MEASURES for table in measure.tables},
}


for measure in MEASURES:

    rule:
        name:
            measure.name
        input:
            measure_inputs(measure, measure_params(measure)),
        output:
            [NEEDED_FILES[table] for table in measure.tables],
        log:
            f"<logs>/{measure.name}.log",
        benchmark:
            f"<benchmarks>/{measure.name}.tsv"
        localrule: measure.local
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            gpu=GPUS if measure.on_gpu else 0,
            mem_mb=growing(measure.memory_mb),
            runtime=measure.runtime,
        params:
            made_from=measure_params(measure),
            name=untracked(measure.name),
            precision=untracked(measure_params(measure)[-1]),
            study=untracked(STUDY.path),
            results=untracked(RESULTS),
            device=untracked(DEVICE if measure.on_gpu else "cpu"),
        message:
            f"Computing {measure.name}"
        shell:
            "blocklora measure {params.name} --study {params.study:q} --results {params.results:q}"
            " --device {params.device} --precision {params.precision} --output {output:q}"
            " > {log:q} 2>&1"
