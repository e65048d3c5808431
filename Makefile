# `make` lists the commands. Each is a thin wrapper over .venv/bin/atelier.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VARIABLES := HOST LIMIT SERVICE SOURCES PROMPT IMAGE QUICK FULL GROUP CHECK NAME LINES ACCEPT_NEW_HOST_KEY REBOOT BUNDLE \
	DEST SET MIRROR SEARCH COPY PORT DEEP YES WRITE IMPORT ONLY PURGE FROM ADOPT_TOKEN OLD
export ACCEPT_NEW_HOST_KEY

# Settings of a run come from make's own command line, never from the environment: a forgotten HOST must not aim anywhere.
UNKNOWN := $(strip $(foreach v,$(.VARIABLES),$(if $(filter command line,$(origin $(v))),$(filter-out $(VARIABLES) MAKEFLAGS MAKEOVERRIDES,$(v)))))
ifneq ($(UNKNOWN),)
$(error unknown variable: $(UNKNOWN). Known: $(VARIABLES))
endif
given = $(if $(filter command line,$(origin $(1))),$(value $(1)))
quote = '$(subst ','\'',$(1))'
option = $(if $(call given,$(2)),$(1) $(call quote,$(call given,$(2))))
flag = $(if $(filter-out 0 1,$(call given,$(2))),$(error $(2) is 1 or 0, not $(value $(2))))$(if $(filter 1,$(call given,$(2))),$(1))
target = $(call option,--host,HOST) $(call option,--limit,LIMIT)
store = $(call option,--dest,DEST) $(call option,--set,SET)
by_name = $(if $(call given,HOST)$(call given,LIMIT),$(error $@ takes NAME=, not HOST= or LIMIT=))
atelier = @./bootstrap.sh && exec .venv/bin/atelier

.PHONY: help deploy plan preflight verify doctor generate status logs stop start restart tunnel credentials rotate outputs reprovision uninstall \
	models-fetch models-verify models-prune models-serve models-adopt models-lock \
	test bench lint lock docs sandbox-up sandbox-down sabotage

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'
	@printf '%s\n' '' 'Target: HOST=user@address[:port], or LIMIT=name of hosts.yml; neither: the sandbox.' \
		'models-*: the weights of that target, or with DEST=DIR those of a store on this computer.'

deploy: ## everything: preflight, host, driver, Docker, weights, images, services, quick verify [SERVICE=] [REBOOT=1] [IMPORT=]
	$(atelier) deploy $(target) $(call option,--service,SERVICE) $(call option,--sources,SOURCES) $(call flag,--reboot,REBOOT) \
		$(call option,--import,IMPORT)
plan: ## what deploy and reprovision would change, move and remove; changes nothing [PURGE=1] [FROM=]
	$(atelier) plan $(target) $(call option,--sources,SOURCES) $(call flag,--purge,PURGE) $(call option,--from,FROM)
preflight: ## all reasons why a deploy would fail, before anything is changed
	$(atelier) preflight $(target) $(call option,--sources,SOURCES)
verify: ## the full proof; report in reports/<host>/latest [QUICK=1] [FULL=1] [DEEP=1] [GROUP=] [CHECK=]
	$(atelier) verify $(target) $(call flag,--quick,QUICK) $(call flag,--full,FULL) $(call flag,--deep,DEEP) $(call option,--group,GROUP) $(call option,--check,CHECK)
doctor: ## recognises known failures and says what to do [BUNDLE=1]
	$(atelier) doctor $(target) $(call flag,--bundle,BUNDLE)
generate: ## one image: PROMPT="..." [IMAGE=in.png] [SERVICE=forge]
	$(atelier) generate $(target) $(call option,--prompt,PROMPT) $(call option,--image,IMAGE) $(call option,--service,SERVICE)
status: ## what runs, which versions, weights on the way, disk, what the host sees, last change and verify [SERVICE=]
	$(atelier) status $(target) $(call option,--service,SERVICE)
logs: ## the services' logs; SERVICE=weights: that of their transfer [SERVICE=] [LINES=]
	$(atelier) logs $(target) $(call option,--service,SERVICE) $(call option,--lines,LINES)
stop: ## stop the services [SERVICE=]
	$(atelier) stop $(target) $(call option,--service,SERVICE)
start: ## start the services [SERVICE=]
	$(atelier) start $(target) $(call option,--service,SERVICE)
restart: ## restart the services [SERVICE=]
	$(atelier) restart $(target) $(call option,--service,SERVICE)
tunnel: ## the services on this computer's localhost, over SSH
	$(atelier) tunnel $(target)
credentials: ## how to log in, with ready-to-paste examples
	$(atelier) credentials $(target)
rotate: ## new credentials in, old ones out, and the proof of both [SERVICE=comfyui|forge] [YES=1]
	$(atelier) rotate $(target) $(call option,--service,SERVICE) $(call flag,--yes,YES)
outputs: ## bring generated images here
	$(atelier) outputs $(target)
reprovision: ## after things were moved, renamed or replaced: the host to what the settings say; nothing is lost [YES=1] [PURGE=1] [FROM=] [ADOPT_TOKEN=1] [OLD=] [REBOOT=1]
	$(atelier) reprovision $(target) $(call option,--sources,SOURCES) $(call flag,--yes,YES) $(call flag,--purge,PURGE) \
		$(call option,--from,FROM) $(call flag,--adopt-token,ADOPT_TOKEN) $(call option,--old,OLD) $(call flag,--reboot,REBOOT)
uninstall: ## the host as it was found; weights, outputs and users' files stay unless PURGE=1 [YES=1]
	$(atelier) uninstall $(target) $(call flag,--yes,YES) $(call flag,--purge,PURGE)
models-fetch: ## the weights alone: on a host, or with DEST=DIR into a store here [SET=] [MIRROR=]
	$(atelier) models fetch $(target) $(store) $(call option,--mirror,MIRROR) $(call option,--sources,SOURCES)
models-verify: ## are all weights there and right? On a host, or in the store DEST=DIR [DEEP=1]
	$(atelier) models verify $(target) $(store) $(call flag,--deep,DEEP)
models-prune: ## files that no set needs, on a host or in the store DEST=DIR; YES=1 removes them
	$(atelier) models prune $(target) $(store) $(call flag,--yes,YES)
models-serve: ## offer the store DEST=DIR to hosts; to one through its SSH connection: HOST= [PORT=]
	$(atelier) models serve $(target) $(call option,--dest,DEST) $(call option,--port,PORT)
models-adopt: ## take weights that lie below SEARCH=DIR into the store DEST=DIR [COPY=1]
	$(atelier) models adopt $(store) $(call option,--search,SEARCH) $(call flag,--copy,COPY)
models-lock: ## what the hub says of the files in locks/models.yml, as a diff; WRITE=1 writes it
	$(atelier) models lock $(call flag,--write,WRITE)
sandbox-up: ## the sandbox alone [NAME=]
	$(by_name)$(atelier) sandbox up $(call option,--name,NAME)
sandbox-down: ## remove the sandbox [NAME=]
	$(by_name)$(atelier) sandbox down $(call option,--name,NAME)
sabotage: ## break the deployed sandbox in every known way, one at a time; verify must notice each [ONLY=] [QUICK=1]
	$(atelier) sabotage $(target) $(call option,--only,ONLY) $(call flag,--quick,QUICK)
test: ## the project's own tests
	@./bootstrap.sh && exec .venv/bin/python -m pytest
bench: ## the benchmarks, with what they are compared with
	@./bootstrap.sh && exec .venv/bin/python -m benchmarks
lint:
	@./bootstrap.sh && .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
docs:
	@./bootstrap.sh && .venv/bin/python -m atelier.settings_page && .venv/bin/python -m atelier.doctor.page && \
		.venv/bin/python -m atelier.report.schema
lock:
	uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header locks/requirements.in \
		-o locks/requirements.txt --custom-compile-command "make lock"
