# Functions that say which fits share a job, what they need, and whether anything is missing.

# Snakemake does not know its targets yet when it reads the rules, so look at the command line.
IS_RUN_ASKED_FOR = any(word.startswith(f"{RESULTS}/runs/") for word in sys.argv)


@cache
def is_to_be_made(run):
    return why_missing(STUDY, run, Path(RESULTS) / places.RUNS, *HOW) is not None


def runs_of(wildcards):
    """Return the runs of a job, which are all that match its wildcards."""
    given = dict(wildcards.items())

    def values(name, every):
        return [type(every[0])(given[name])] if name in given else every

    cell = [wildcards.backbone], [wildcards.dataset], values("method", STUDY.fitted_methods)
    return [
        Run(*run)
        for run in product(*cell, values("shots", STUDY.shots), values("seed", STUDY.seeds))
    ]


def closed_by_unit(unit):
    """Return a constraint that limits `backbone` to the cells for which this unit was chosen.

    There is no such limit for a run that is asked for by its path, nor within the jobs that
    Snakemake starts, for example on a node of a cluster.
    """
    if not workflow.is_main_process or unit == "run" and IS_RUN_ASKED_FOR:
        return closed(STUDY.backbones)
    shots = {}
    for (backbone, dataset, number), chosen in FIT_UNITS.items():
        if chosen.name == unit:
            shots.setdefault((backbone, dataset), []).append(number)
    cells = [
        f"{re.escape(backbone)}(?=/{re.escape(dataset)}/[^/]+/({closed(numbers)})shot/)"
        for (backbone, dataset), numbers in shots.items()
    ]
    return "|".join(cells) or "(?!)"


def fit_inputs(unit):
    """Return a function for the input of the rule that fits this unit, if the rule applies.

    The rule does not apply if nothing is missing. A study whose fits are finished, here or
    elsewhere, therefore needs none of the files that they were made from.
    """

    def applies(runs):
        if not workflow.is_main_process:
            return True
        if unit == "run" and is_asked_for(f"<results>/runs/{runs[0].folder}"):
            return True
        first = runs[0]
        if FIT_UNITS[first.backbone, first.dataset, first.shots].name != unit:
            return False
        return is_everything_due() or any(map(is_to_be_made, runs))

    def inputs(wildcards):
        runs, dataset = runs_of(wildcards), wildcards.dataset
        if not applies(runs):
            return {"nothing": NEVER}
        lists = dict.fromkeys((dataset, run.shots, run.seed) for run in runs)
        pixels = places.test_pixels(dataset, STUDY.image_size(wildcards.backbone))
        needed = {
            "gate": [places.gate(wildcards.backbone, dataset)],
            "backbone": [places.backbone(wildcards.backbone)],
            "manifest": [places.manifest(dataset)],
            "pixels": [pixels],
            "shots": [places.shots_list(*key) for key in lists],
            "shots_pixels": [places.shots_pixels(*key) for key in lists],
        }
        return {name: [f"<results>/{file}" for file in files] for name, files in needed.items()}

    return inputs


def outdated(wildcards):
    """Return the digests of those runs of a job that differ from what the study says now.

    Missing runs are made anyway and finished runs are left out, so a run that joins or leaves the
    job redoes nothing.
    """
    made = [run for run in runs_of(wildcards) if Path(RESULTS, "runs", run.folder, RECORD).exists()]
    return [run_digests(run) for run in made if is_to_be_made(run)]


def which_fits(wildcards, input):
    """Return the options that select the runs of a job."""
    given = dict(wildcards.items())
    options = {"method": "methods", "shots": "shots", "seed": "seeds"}
    return " ".join(f"--{options[name]} {given[name]}" for name in options if name in given)


def missing_fits(wildcards, input):
    """Return in words how many runs of a job are missing, for messages."""
    runs = runs_of(wildcards)
    missing = sum(map(is_to_be_made, runs))
    return f"{missing} of {len(runs)} runs" if len(runs) > 1 else runs[0].folder


def fit_runtime(wildcards):
    """Return the time limit of a job, which is above `job_hours` if a single fit needs more."""
    units = [FIT_UNITS[run.backbone, run.dataset, run.shots] for run in runs_of(wildcards)]
    return f"{max(unit.job_minutes(config['job_hours']) for unit in units)}m"


def runs_in(unit):
    """Return, for each rule of a unit, the kind of method and the patterns of runs in a job."""
    shots = STUDY.shots if unit == "dataset" else ["{shots}"]
    seeds = ["{seed}"] if unit == "run" else STUDY.seeds
    if unit == "run":
        kinds = dict.fromkeys(STUDY.methods[name].kind for name in STUDY.fitted_methods)
        return [(kind, [("{method}", "{shots}", "{seed}")]) for kind in kinds]
    return [("", list(product(STUDY.fitted_methods, shots, seeds)))]


def fitted_files(kind, patterns):
    """Return the files that fits write, including the tests on their own dataset."""
    return [
        file
        for method, shots, seed in patterns
        for file in run_files(
            Run("{backbone}", "{dataset}", method, shots, seed), kind or STUDY.methods[method].kind
        )
    ]
