# What a release is besides wheels and packages: images and manifests.
# The Makefile includes it. Tools of its own are in .venv-release, by packaging/release.lock.
RELEASE     := .venv-release
ENGINE      ?= $(firstword $(foreach one,podman docker,$(if $(shell command -v $(one)),$(one))))
ACCELERATOR ?= cpu
TAG         ?= latest
version      = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: images manifests

images: $(VENV)/.ready  ## images of both programs: make images ACCELERATOR=cuda12 TAG=0.2.0 BASE=a-debian ENGINE=docker
	@test -n "$(ENGINE)" || { echo "make images needs podman or docker" >&2; exit 1; }
	rm -rf dist/image && mkdir -p dist/image
	cp dist/cortex_jax-$(version)-*.whl dist/image/ 2>/dev/null \
	  || $(BIN)/python -m build --wheel --no-isolation --outdir dist/image . >/dev/null
	cp dist/cortex_jax_kernels-$(version)-*.whl dist/image/ 2>/dev/null || true
	for program in cortex neuron; do \
	  $(ENGINE) build $(if $(filter podman,$(ENGINE)),--format docker) $(if $(BASE),--build-arg BASE=$(BASE)) \
	    --build-arg ACCELERATOR=$(ACCELERATOR) --file packaging/containers/Containerfile.$$program \
	    --tag localhost/$$program:$(TAG) . || exit 1; \
	done

manifests: $(RELEASE)/.ready  ## hold Kubernetes manifests to their schemas, and Containerfiles to their rules
	$(RELEASE)/bin/kubernetes-validate --strict packaging/kubernetes/neuron.yaml packaging/kubernetes/cortex.yaml \
	  packaging/kubernetes/network.yaml
	$(RELEASE)/bin/hadolint --ignore DL3008 packaging/containers/Containerfile.*

$(RELEASE)/.ready: packaging/release.lock
	$(BIN)/python -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement packaging/release.lock
	touch $@
