# Lodge. `make` lists what can be made. Binaries go to bin/, what tests and benchmarks leave behind to out/.

GO       ?= go
FUZZTIME ?= 10s
ONLY     ?=

.PHONY: help deps build test deb run desktops consoles bench lint fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the Debian packages of .ci/packages (as root, or through sudo)
	@.ci/deps

build: ## build all binaries into bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags="-s -w" -o bin/ ./cmd/...

test: deps build bin/testrun ## run all tests, and each fuzz target for FUZZTIME (10s)
	@bin/testrun -fuzztime $(FUZZTIME)

deb: deps ## build the Debian package into out/
	@$(GO) run ./packaging/deb

run: deps build ## switch a simulated notebook on that has Lodge in its flash: in a window, or as a tour with screenshots
	@$(GO) build -o bin/ ./e2e/cmd/e2e-run && bin/e2e-run

desktops: deps build ## start two desktops side by side in a simulated notebook: in a window, or as a tour with screenshots
	@$(GO) build -o bin/ ./e2e/cmd/e2e-run && bin/e2e-run -desktops

consoles: deps build ## start two guests, 64-bit and 32-bit, and type into their serial consoles
	@$(GO) build -o bin/ ./e2e/cmd/e2e-run && bin/e2e-run -consoles

bench: deps build bin/bench ## measure ours and the peers' figures (ONLY=pattern for some)
	@bin/bench -only '$(ONLY)'

lint: bin/golangci-lint ## gofmt, go vet, staticcheck, golangci-lint
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not as gofmt writes it; run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	bin/staticcheck ./...
	bin/golangci-lint run ./...

# Run as themselves, not by go run, which would have the last word.
bin/testrun: FORCE
	@$(GO) build -o $@ ./e2e/cmd/testrun

bin/bench: FORCE
	@$(GO) build -o $@ ./e2e/bench

FORCE:

# Both linters. They take some minutes to compile, once.
bin/golangci-lint: tools/go.mod
	@mkdir -p bin
	cd tools && $(GO) build -o ../bin/ tool
	@touch $@

fuzz: bin/testrun ## run each fuzz target for FUZZTIME (ONLY=pattern for some, as hypervisor/pci.FuzzConfig)
	@bin/testrun -stages fuzz -fuzztime $(FUZZTIME) -only '$(ONLY)'

clean: ## remove bin/ and out/, with the images of the simulated notebook
	rm -rf bin out
