#!/bin/sh
# Make the hash locks of the images again: locks/images/compile.sh COMFYUI_SOURCE FORGE_SOURCE [uv options, such as --upgrade]
#
# The two arguments are unpacked sources at the commits of locks/sources.yml. Needs uv; the package indexes are the
# operator's own. UV_FIND_LINKS must name a folder with the CPU wheel of torch where no index offers one.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
comfyui=$1 forge=$2
shift 2

lock() { # OUTPUT INPUT... : --no-header and --no-annotate keep paths of this computer out of the lock
    output=$1
    shift
    uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 \
        --output-file "$here/$output" "$@"
}

for variant in cpu cu126 cu130; do
    torch=torch-$variant.txt
    (
        # A local folder's +cpu wheel would satisfy the plain version number too.
        [ "$variant" = cpu ] || unset UV_FIND_LINKS
        # comfy-kitchen uses triton where it is importable; torch 2.7's asks for a GPU and a C compiler at that moment, of
        # which an image build has neither. ComfyUI leaves its triton kernels off.
        [ "$variant" != cu126 ] || set -- --no-emit-package triton "$@"
        lock "$torch" "$here/torch-$variant.in" --no-emit-package numpy --no-emit-package pillow "$@"
        # comfyui-workflow-templates' media (previews of the template gallery) are 414 MB that no service needs.
        lock "comfyui-$variant.txt" "$here/comfyui.in" "$comfyui/requirements.txt" --constraints "$here/$torch" \
            --no-emit-package comfyui-workflow-templates-media-api \
            --no-emit-package comfyui-workflow-templates-media-assets-01 \
            --no-emit-package comfyui-workflow-templates-media-image \
            --no-emit-package comfyui-workflow-templates-media-other \
            --no-emit-package comfyui-workflow-templates-media-video "$@"
        lock "forge-$variant.txt" "$here/forge.in" "$forge/requirements_versions.txt" --constraints "$here/$torch" \
            --overrides "$here/forge-overrides.in" --no-emit-package opencv-python "$@"
    )
done
