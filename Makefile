# Every command of the project. The logic lives in Go; this file only names it.

VERSION  := $(shell sed -n 's/^appVersion: *"\{0,1\}\([^"]*\).*/\1/p' charts/vpn-gateway/Chart.yaml)
REVISION := $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)
CREATED  := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
REGISTRY ?= ghcr.io/cloud-native-vpn
# The adapter has a thousand packages: to build it cold takes minutes for each of these.
PLATFORMS ?= linux/amd64 linux/arm64
FUZZTIME ?= 30s

# What is linted and formatted; the tools' modules have no code.
MODULES := . agent/cmd/vpn-metrics-adapter ci/image tests/alerts tests/cluster tests/externalsecrets

# The same flags for every binary of a release: equal sources, equal bytes.
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
GOTEST  := go run ./tests/gotest
TOOL    := go run ./ci/tools/run

.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/vpn-agent, static, for this machine
	$(GOBUILD) -o bin/vpn-agent ./agent/cmd/vpn-agent

# image-archive NAME BINARY DESCRIPTION: an image of one static binary.
archive = $(CURDIR)/dist/$(1)-$(VERSION).tar
define image-archive
	@go run -C ci/image . build -name ghcr.io/cloud-native-vpn/$(1):$(VERSION) -output $(call archive,$(1)) -created $(CREATED) \
		$(foreach platform,$(PLATFORMS),-platform $(platform)) -entrypoint /$(2) \
		-file '$(CURDIR)/bin/{os}-{arch}/$(2):/$(2):0755' \
		-ca-certificates /etc/ssl/certs/ca-certificates.crt \
		-label org.opencontainers.image.title=$(1) \
		-label 'org.opencontainers.image.description=$(3)' \
		-label org.opencontainers.image.source=https://github.com/cloud-native-vpn/vpn-gateway \
		-label org.opencontainers.image.licenses=Apache-2.0 \
		-label org.opencontainers.image.version=$(VERSION) \
		-label org.opencontainers.image.revision=$(REVISION)
endef
# os-arch, as in linux-amd64, with GOOS and GOARCH set for it: for-platforms COMMAND
for-platforms = @for platform in $(PLATFORMS); do \
	export GOOS=$${platform%/*} GOARCH=$${platform\#*/}; $(1) || exit 1; done

.PHONY: image image-gateway image-adapter
image: image-gateway image-adapter ## Build the container images for amd64 and arm64 as OCI archives in dist/
image-gateway:
	$(call for-platforms,$(GOBUILD) -o bin/$$GOOS-$$GOARCH/vpn-agent ./agent/cmd/vpn-agent)
	$(call image-archive,vpn-gateway,vpn-agent,WireGuard gateway for Kubernetes that never drops a tunnel)
image-adapter:
	$(call for-platforms,(cd agent/cmd/vpn-metrics-adapter && $(GOBUILD) -o $(CURDIR)/bin/$$GOOS-$$GOARCH/vpn-metrics-adapter .))
	$(call image-archive,vpn-metrics-adapter,vpn-metrics-adapter,Connections of a vpn-gateway for the HorizontalPodAutoscaler)

.PHONY: push
push: image ## Push the images to REGISTRY=registry.example.com/team
	@for name in vpn-gateway vpn-metrics-adapter; do \
		go run -C ci/image . push -archive $(CURDIR)/dist/$$name-$(VERSION).tar -registry $(REGISTRY) || exit 1; done

.PHONY: deps
deps: ## Install the system packages that tests and demos need (Debian and kin, as root)
	@go run ./tests/deps -vm

.PHONY: test test-unit test-integration test-image test-adapter test-alerts test-cluster test-externalsecrets
test: ## Run every test that needs no cluster
	@go run ./tests/deps -try -vm
	@$(MAKE) -k test-unit test-integration test-image test-adapter test-alerts test-cluster test-externalsecrets
test-unit:
	@$(GOTEST) -name unit -- $$(go list ./... | grep -v /tests/integration)
# By itself: what it measures would suffer from other tests beside it. Never from
# the cache, which does not know that the tests build the agent and render the chart.
test-integration:
	@$(GOTEST) -name integration -- -count=1 -timeout 20m ./tests/integration/...
test-image:
	@$(GOTEST) -name image -C ci/image -- ./...
# With the flags of the image, which is then built of the same packages.
test-adapter:
	@CGO_ENABLED=0 $(GOTEST) -name adapter -C agent/cmd/vpn-metrics-adapter -- -trimpath ./...
# The chart's alerts, against Prometheus's own parser and engine.
test-alerts:
	@$(GOTEST) -name alerts -C tests/alerts -- ./...
test-cluster:
	@$(GOTEST) -name cluster -C tests/cluster -- ./internal/...
# What the chart renders for External Secrets, against that controller's own code.
# The flags are those by which e2e builds the controller: most of it is built once.
test-externalsecrets:
	@CGO_ENABLED=0 $(GOTEST) -name externalsecrets -C tests/externalsecrets -- -trimpath ./...

.PHONY: e2e
e2e: ## Run the tests on a Kubernetes of the project's own (root; the first run builds it)
	@go run ./tests/deps -try
	@$(GOTEST) -name e2e -- -v -count=1 -tags e2e -timeout 90m -parallel 9 ./tests/e2e/...

.PHONY: fuzz
fuzz: ## Fuzz the parser of what users write, the rotation of keys and messages of the fleet, each for FUZZTIME
	go test -run '^$$' -fuzz FuzzParse -fuzztime $(FUZZTIME) ./agent/internal/spec
	go test -run '^$$' -fuzz FuzzRotate -fuzztime $(FUZZTIME) ./agent/internal/rotate
	go test -run '^$$' -fuzz FuzzDecode -fuzztime $(FUZZTIME) ./agent/internal/fleet

.PHONY: bench
bench: ## Measure reload, rotation, metrics, memory, throughput, moves and deaths of replicas, autoscaling; prints the README's table
	@go run ./tests/deps -try
	@go run ./tests/bench

.PHONY: demo demo-cluster demo-down
demo: ## Show a gateway and a client on this machine, with no cluster (root)
	@go run ./tests/deps -try
	@go run ./tests/demo
demo-cluster: ## Show the same on a Kubernetes of the project's own (root)
	@go run ./tests/deps -try
	@go run ./tests/demo -cluster
demo-down: ## Remove everything that demo-cluster made
	@go run -C tests/cluster . down

.PHONY: lint lint-selftest
lint: lint-selftest ## Check the code, the floors of the design, the chart and what is generated
	@golangci=$$($(TOOL) -path golangci-lint) && for module in $(MODULES); do \
		echo "golangci-lint $$module" && (cd $$module && $$golangci run) || exit 1; done
	@for values in values/*.yaml; do \
		echo "helm lint $$values" && $(TOOL) helm lint --strict --quiet charts/vpn-gateway -f $$values || exit 1; done
	@$(MAKE) docs-check
# Proves that the linter finds what it is there to find.
lint-selftest:
	@go test -tags lint ./ci/lint

.PHONY: fmt
fmt: ## Format the Go code
	@golangci=$$($(TOOL) -path golangci-lint) && for module in $(MODULES); do \
		(cd $$module && $$golangci fmt) || exit 1; done

.PHONY: docs docs-check
docs: ## Generate the tables of values, metrics and flags
	@$(TOOL) helm-docs --chart-search-root charts --log-level warning
	@go test ./agent/internal/telemetry ./agent/cmd/vpn-agent -run TestDocs -update >/dev/null
docs-check: ## Fail where generated documentation was not up to date; it is then
	@sums() { cksum charts/*/README.md docs/*.md; }; before=$$(sums) && $(MAKE) docs && \
		{ test "$$before" = "$$(sums)" || { echo 'generated documentation was not up to date; it is now' >&2; exit 1; }; }

.PHONY: clean
clean: ## Remove what was built here (the cache outside the tree stays)
	rm -rf bin dist
