# SPDX-License-Identifier: Apache-2.0
# Everything runs as root on Linux ≥ 5.17 with cgroup v2. Each target installs what it needs.

BIN := target/release
PROCESSES := -p culvert -p culvert-agent -p culvert-cni -p culvert-control -p culvert-proxy

.PHONY: help demo test test-unit test-net e2e images lint build ebpf ebpf-check bench bench-quick setup-demo setup-test clean-sandboxes

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## Run the mesh on this machine with a demo application, and show it
	$(BIN)/culvert sandbox demo

test: ## Run every test, the second half also after the first has failed
	@$(MAKE) --keep-going test-unit test-net

test-unit: setup-test ## Tests that need no sandbox: pure ones, pipes, the kernel
	cargo test --release --workspace --exclude culvert-tests --no-fail-fast

test-net: setup-test build ## Tests of the real binaries in sandboxes of network namespaces
	cargo test --release -p culvert-tests --no-fail-fast -- --test-threads=1

e2e: setup-test images ## Install Culvert on a real Kubernetes of two nodes, break what can break, and take it away again
	tests/kubernetes/setup.sh
	cargo test --release -p culvert-tests --test e2e -- --ignored --nocapture

images: build ## Container images of the five programs in target/images, without a registry
	scripts/images

lint: ## Formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

build: setup-demo ## Build the five processes in release
	cargo build --release $(PROCESSES)

ebpf: ## Rebuild the checked-in eBPF objects (installs their toolchain)
	ebpf/build.sh

ebpf-check: ## Prove that the checked-in eBPF objects come from their source
	ebpf/build.sh --check

bench: build setup-test ## Measure Culvert against the same pods unmeshed: requests, connections, bytes, memory
	cargo bench -p culvert-tests --bench http
	cargo bench -p culvert-tests --bench measures
	cargo bench -p culvert-ebpf-loader --bench attach

bench-quick: build setup-test ## The requests of it, in less than two minutes
	cargo bench -p culvert-tests --bench http -- --quick

setup-demo:
	@scripts/setup demo

setup-test:
	@scripts/setup test

clean-sandboxes: ## Take down every sandbox of this machine
	@for name in $$(ls /run/culvert/sandbox 2>/dev/null); do $(BIN)/culvert sandbox down --name $$name; done
