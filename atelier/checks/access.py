"""Who gets in."""

from atelier.checks.check import LOGS, REDEPLOY, Check, for_services

CLOSE = (
    "stop it now with `make stop`: what should be closed is open; then `make deploy` and `make logs SERVICE=gateway`"
)

COMFYUI, FORGE = (("access.certificate", f"access.{service}.healthz") for service in ("comfyui", "forge"))
"""Nothing opens what is not served, or what shows a certificate that nobody trusts."""

CHECKS: tuple[Check, ...] = (
    Check(
        "access.certificate",
        "The services show the declared certificate, and it lasts for a while",
        "what clients are told to trust is what they meet, and it does not end unnoticed",
        REDEPLOY,
        tls=True,
    ),
    *for_services(
        "access.{service}.healthz",
        "{name}: /healthz says up",
        "a public state that says nothing else",
        LOGS,
        depends=("access.certificate",),
    ),
    *for_services("access.{service}.stranger", "{name}: strangers are refused", "no credential, no access", CLOSE),
    *for_services(
        "access.{service}.wrong",
        "{name}: wrong, malformed and foreign credentials are refused",
        "only the service's own credential opens it",
        CLOSE,
    ),
    Check(
        "access.comfyui.token",
        "ComfyUI: the bytes of the token file open it",
        "the token kept here is the token in force, byte for byte",
        "the host holds other credentials than `.secrets`: `make deploy` says which way to go",
        service="comfyui",
        depends=COMFYUI,
    ),
    Check(
        "access.comfyui.query",
        "ComfyUI: a token in the URL is treated as the settings say",
        "a token in a URL ends up in logs and histories",
        "see allow_query_token in the settings; then `make deploy`",
        service="comfyui",
    ),
    Check(
        "access.comfyui.browser",
        "ComfyUI: user and password log a browser in, a wrong password does not",
        "the browser's way in works",
        LOGS.format(service="comfyui"),
        service="comfyui",
        depends=COMFYUI,
    ),
    Check(
        "access.comfyui.websocket",
        "ComfyUI: the WebSocket opens to the token only and speaks",
        "live progress through the gateway",
        LOGS.format(service="gateway"),
        service="comfyui",
        depends=COMFYUI,
    ),
    Check(
        "access.forge.basic",
        "Forge: user and password open the API",
        "the API's way in works",
        "the host holds other credentials than `.secrets`: `make deploy` says which way to go",
        service="forge",
        depends=FORGE,
    ),
    Check(
        "access.forge.login",
        "Forge: the login form opens the interface, a wrong password does not",
        "the browser's way in works",
        LOGS.format(service="forge"),
        service="forge",
        depends=FORGE,
    ),
    Check(
        "access.direct",
        "Nobody reaches a container beside the gateway's ports: no user of the host, no other container",
        "no door beside the gateway",
        "look for a published port, a network with a way in, an address of the host on it: `docker network inspect`; "
        "then `make deploy`",
        quick=False,
    ),
    *for_services(
        "access.{service}.matrix",
        "{name}: every path gives every kind of caller what the table says",
        "each service's own credential opens it, nothing else does",
        "access.html beside this report shows each request; " + CLOSE,
        quick=False,
    ),
)
