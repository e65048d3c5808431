"""TEST DOUBLE, never deploy: where ComfyUI keeps models, inputs, outputs and users' files."""

from __future__ import annotations

import logging
import os

from comfy.cli_args import args

supported_pt_extensions = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}

base_path = os.path.abspath(args.base_directory or os.path.dirname(os.path.realpath(__file__)))
models_dir = os.path.abspath(args.models_directory or os.path.join(base_path, "models"))

MODEL_FOLDERS = {
    "checkpoints": ["checkpoints"],
    "loras": ["loras"],
    "vae": ["vae"],
    "text_encoders": ["text_encoders", "clip"],
    "diffusion_models": ["unet", "diffusion_models"],
    "embeddings": ["embeddings"],
    "vae_approx": ["vae_approx"],
    "controlnet": ["controlnet", "t2i_adapter"],
    "upscale_models": ["upscale_models"],
}
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {
    name: ([os.path.join(models_dir, folder) for folder in folders], supported_pt_extensions)
    for name, folders in MODEL_FOLDERS.items()
}
folder_names_and_paths["custom_nodes"] = ([os.path.join(base_path, "custom_nodes")], set())

output_directory = os.path.abspath(args.output_directory or os.path.join(base_path, "output"))
input_directory = os.path.abspath(args.input_directory or os.path.join(base_path, "input"))
user_directory = os.path.abspath(args.user_directory or os.path.join(base_path, "user"))
temp_directory = os.path.join(os.path.abspath(args.temp_directory or base_path), "temp")

if not os.path.exists(input_directory):
    try:
        os.makedirs(input_directory)
    except OSError:
        logging.error("Failed to create input directory")


def get_output_directory() -> str:
    return output_directory


def get_input_directory() -> str:
    return input_directory


def get_user_directory() -> str:
    return user_directory


def get_temp_directory() -> str:
    return temp_directory


def get_directory_by_type(type_name: str) -> str | None:
    return {"output": output_directory, "temp": temp_directory, "input": input_directory}.get(type_name)


def get_folder_paths(folder_name: str) -> list[str]:
    return folder_names_and_paths[folder_name][0][:]


def get_filename_list(folder_name: str) -> list[str]:
    """Names relative to the model folder, sub-folders included, sorted. Read anew each time, as the real one does."""
    folders, extensions = folder_names_and_paths[folder_name]
    found = set()
    for folder in folders:
        for parent, _, files in os.walk(folder, followlinks=True):
            found.update(os.path.relpath(os.path.join(parent, file), folder) for file in files)
    return sorted(name for name in found if os.path.splitext(name)[1].lower() in extensions)


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    for folder in get_folder_paths(folder_name):
        path = os.path.join(folder, os.path.relpath(os.path.join("/", filename), "/"))
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")


def annotated_filepath(name: str) -> tuple[str, str | None]:
    """Splits `picture.png [output]` into the name and the directory of that type."""
    for kind in ("output", "input", "temp"):
        if name.endswith(f"[{kind}]"):
            return name[: -len(kind) - 3], get_directory_by_type(kind)
    return name, None


def get_annotated_filepath(name: str) -> str:
    name, base_dir = annotated_filepath(name)
    return os.path.join(base_dir or input_directory, name)


def is_within_directory(directory: str, target: str) -> bool:
    root = os.path.realpath(directory)
    return os.path.commonpath((root, os.path.realpath(target))) == root


def get_save_image_path(filename_prefix: str, output_dir: str) -> tuple[str, str, int, str]:
    """Folder, file name stem, first free counter and sub-folder for an image called `filename_prefix`."""
    subfolder, filename = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if not is_within_directory(output_dir, folder):
        raise Exception("**** ERROR: Saving image outside the output folder is not allowed.")
    os.makedirs(folder, exist_ok=True)
    counters = [
        int(digits)
        for name in os.listdir(folder)
        if name.startswith(filename + "_") and (digits := name[len(filename) + 1 :].split("_")[0]).isdigit()
    ]
    return folder, filename, max(counters, default=0) + 1, subfolder
