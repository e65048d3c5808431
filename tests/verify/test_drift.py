"""Group drift: the host is what the settings say now. What is wrong is judged by atelier/drift.py and atelier/container_drift.py."""

import pytest

from atelier import container_drift, drift, lifecycle
from atelier import deployment as decide
from atelier.target import Target


@pytest.fixture(scope="module")
def deployment(stack):
    """What a deploy from here would bring about now."""
    given = stack.context["target"]
    target = Target(given["name"], given["kind"], stack.destination, stack.settings)
    return lifecycle.decide_as_deployed(target, stack.ssh, stack.deployed)


@pytest.mark.check("drift.files")
def test_files_are_as_declared(stack, check, deployment):
    found = drift.parse_tree(stack.output(drift.tree_script(deployment)))
    unlike = drift.unlike(deployment, found)
    contents = drift.parse_contents(stack.output(drift.contents_script(unlike))) if unlike else {}
    wrong = drift.files(deployment, found, contents, stack.deployed)
    seen = f"{len(deployment.entries())} files and directories, and nothing else among {len(found.below)}"
    check.free_of("every file, directory, mode and owner as the settings say now, and nothing foreign", wrong, seen)


@pytest.mark.check("drift.units")
def test_units_are_as_declared(stack, check, deployment):
    found = drift.parse_units(stack.output(drift.units_script(deployment)))
    wrong = drift.units(deployment, found)
    seen = ", ".join(sorted(found.keys() - {"host"}))
    check.free_of("enabled, up where they stay up, read by systemd as they lie on the disk, not added to", wrong, seen)


@pytest.mark.check("drift.packages")
def test_packages_are_as_deployed(stack, check, deployment):
    recorded = stack.deployed.get("packages", {})
    names = {*decide.recorded_packages(deployment), *recorded}
    installed, held = drift.parse_packages(stack.output(drift.packages_script(sorted(names))))
    differ = drift.older_script(installed, recorded)
    older = stack.ssh.run(differ).stdout.split() if differ else []
    holds = decide.held_packages(deployment)
    wrong = drift.packages(drift.wanted_packages(deployment), holds, installed, held, recorded, older)
    check.free_of(
        "every package there, none older than deployed; pinned and held ones as deployed",
        wrong,
        f"{len(installed)} packages, {len(holds)} of them held",
    )
    check.warn(
        "the last deploy recorded their versions",
        [] if recorded else ["it recorded none, so that older ones would not be noticed"],
        "`make deploy` records them",
    )


@pytest.mark.check("drift.images")
def test_images_are_those_of_the_settings(stack, check, deployment):
    there = drift.parse_images(stack.output(drift.images_script(deployment)))
    labels = {service: told["Config"]["Labels"].get("atelier.config", "") for service, told in stack.inspect().items()}
    wrong = drift.images(deployment, stack.deployed, there, labels)
    seen = ", ".join(deployment.image_tags().values())
    check.free_of("images and configurations that the settings ask for now were deployed, and are there", wrong, seen)


@pytest.mark.check("drift.containers")
def test_containers_are_as_their_compose_files_say(stack, check, deployment):
    projects = deployment.projects()
    told = container_drift.parse(stack.output(container_drift.script(projects)))
    wrong = container_drift.containers(projects, told)
    check.free_of(
        "configured as their compose files and images say, and no file changed inside them", wrong, ", ".join(told)
    )
