# Parts of a study, each a target: snakemake runs


rule fetch:
    input:
        expand("<results>/data/{dataset}/source.json", dataset=STUDY.datasets),
        expand("<results>/backbones/{backbone}.safetensors", backbone=STUDY.backbones),


rule data:
    input:
        expand("<results>/data/{dataset}/verification.json", dataset=STUDY.datasets),
        expand(
            "<results>/shots/{dataset}/{shots}shot/seed{seed}.csv",
            dataset=STUDY.datasets,
            shots=STUDY.shots,
            seed=STUDY.seeds,
        ),


rule runs:
    input:
        [run_files(run) for run in STUDY.runs()],
