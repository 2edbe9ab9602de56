# What a release is besides wheels and packages: images, manifests, lists of what is inside, checksums, signatures.
# The Makefile includes it. Tools of its own are in .venv-release, by packaging/release.lock.
RELEASE     := .venv-release
ENGINE      ?= $(firstword $(foreach one,podman docker,$(if $(shell command -v $(one)),$(one))))
ACCELERATOR ?= cpu
TAG         ?= latest
PARTS       := gateway neuron neuron-cuda12
version      = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: images manifests sbom audit licences artefacts release

images: $(VENV)/.ready  ## images of both programs: make images ACCELERATOR=cuda12 TAG=0.2.0 BASE=a-debian ENGINE=docker
	@test -n "$(ENGINE)" || { echo "make images needs podman or docker" >&2; exit 1; }
	rm -rf dist/image && mkdir -p dist/image
	$(BIN)/python -m build --wheel --no-isolation --outdir dist/image . >/dev/null
	$(BIN)/python packaging/kernels.py dist/image
	for program in cortex neuron; do \
	  $(ENGINE) build $(if $(filter podman,$(ENGINE)),--format docker) $(if $(BASE),--build-arg BASE=$(BASE)) \
	    --build-arg ACCELERATOR=$(ACCELERATOR) --file packaging/containers/Containerfile.$$program \
	    --tag localhost/$$program:$(TAG) . || exit 1; \
	done

manifests: $(RELEASE)/.ready  ## hold Kubernetes manifests to their schemas, and Containerfiles to their rules
	$(RELEASE)/bin/kubernetes-validate --strict packaging/kubernetes/neuron.yaml packaging/kubernetes/cortex.yaml \
	  packaging/kubernetes/network.yaml
	$(RELEASE)/bin/hadolint --ignore DL3008 packaging/containers/Containerfile.*

sbom: $(RELEASE)/.ready  ## what each part of the program is made of, as CycloneDX
	mkdir -p dist
	for part in $(PARTS); do \
	  case $$part in *cuda12) lock=requirements-cuda12.lock ;; *) lock=requirements.lock ;; esac; \
	  case $$part in gateway) extra= ;; *) extra=neuron ;; esac; \
	  $(RELEASE)/bin/python packaging/lock.py $$extra <$$lock | $(RELEASE)/bin/cyclonedx-py requirements --pyproject pyproject.toml \
	    --mc-type application --output-reproducible --output-format JSON \
	    --output-file dist/cortex-jax-$(version)-$$part.cdx.json - || exit 1; \
	done

audit: $(RELEASE)/.ready  ## ask the advisory database about every package in the locks
	for lock in requirements.lock requirements-cuda12.lock; do \
	  $(RELEASE)/bin/pip-audit --strict --disable-pip --require-hashes --requirement $$lock || exit 1; \
	done

licences: $(VENV)/.ready  ## the licence of every package in the locks
	@$(BIN)/python tools/licences.py

artefacts: licences packages sbom  ## all that a release consists of, into dist/, with checksums; signed where KEY= names a key
	$(BIN)/python packaging/release.py checksums dist
	$(if $(KEY),$(BIN)/python packaging/release.py sign dist "$(KEY)")
	@cat dist/SHA256SUMS

release: $(VENV)/.ready  ## make release VERSION=1.2.3 KEY=an-ssh-key-file-or-a-gpg-key: bump, commit, tag, build; pushes nothing
	$(BIN)/python packaging/release.py bump "$(VERSION)"
	git commit --quiet --all --message "Release $(VERSION)"
	git tag --annotate "v$(VERSION)" --message "cortex $(VERSION)"
	rm -rf dist
	$(MAKE) artefacts
	@echo "built in dist/; publish with: git push origin HEAD v$(VERSION)"

$(RELEASE)/.ready: packaging/release.lock
	$${PYTHON:-python3} -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement packaging/release.lock
	touch $@
