"""The state of a deployment as an Ansible playbook: one task for what is one thing, with Ansible's own modules."""

from typing import Any

from atelier import deployment as decide
from atelier import render
from atelier.deployment import Deployment
from atelier.tree import Directory, Entry, File

Task = dict[str, Any]


def playbook(deployment: Deployment) -> list[dict[str, Any]]:
    """A play for `hosts: all` that declares what deploy.py declares."""
    settings = deployment.settings
    user, uid = settings.service_user, settings.service_uid
    tasks: list[Task] = [
        {"name": "Base packages", "ansible.builtin.apt": {"name": list(decide.host_packages(deployment.facts))}},
        {"name": "Group", "ansible.builtin.group": {"name": user, "gid": uid, "system": True}},
        {
            "name": "User",
            "ansible.builtin.user": {
                "name": user,
                "uid": uid,
                "group": user,
                "system": True,
                "create_home": False,
                "home": "/nonexistent",
                "shell": "/usr/sbin/nologin",
                "comment": "Atelier services",
            },
        },
        {"name": "Docker", "ansible.builtin.apt": {"name": list(decide.docker_packages(deployment.facts))}},
    ]
    entries: list[Entry] = [
        *decide.APT_SETTINGS,
        *deployment.directories(),
        *deployment.identity(),
        *deployment.secrets(),
    ]
    entries += [render.loopback_guard()]
    entries += [entry for project in deployment.projects() for entry in project.entries]
    tasks += [_entry(entry) for entry in entries]
    tasks += [
        {"name": unit, "ansible.builtin.systemd_service": {"name": unit, "enabled": True, "state": "started"}}
        for unit in ("docker", "atelier-loopback-guard")
    ]
    tasks += [_command(f"docker network inspect {network.name}") for network in render.networks(settings)]
    tags = deployment.image_tags()
    tasks += [_command(f"docker image inspect {tags[project.service]}") for project in deployment.projects()]
    tasks += [_command(f"stat {settings.models_path()}/{weight.store_path}") for weight in deployment.weights]
    tasks += [
        _command(f"docker compose -f {project.directory}/compose.yaml up -d") for project in deployment.projects()
    ]
    return [{"hosts": "all", "become": True, "gather_facts": True, "tasks": tasks}]


def _entry(entry: Entry) -> Task:
    mode = f"{entry.mode:04o}"
    owner = {"owner": entry.owner, "group": entry.owner, "mode": mode}
    if isinstance(entry, Directory):
        return {"name": entry.path, "ansible.builtin.file": {"path": entry.path, "state": "directory", **owner}}
    assert isinstance(entry, File)
    return {
        "name": entry.path,
        "ansible.builtin.copy": {"dest": entry.path, "content": entry.content.decode(), **owner},
    }


def _command(command: str) -> Task:
    return {"name": command, "ansible.builtin.command": command, "changed_when": False}
