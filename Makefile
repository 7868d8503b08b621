# The repository's tasks by name; `make` alone lists them.

# What `make soak` and `make bench` run; everything when empty.
ROWS =

# What `make contracts` runs: fuzz, client or, when empty, both.
CONTRACTS =

# The profile to run with: dev is compiled in a fraction of the time that release takes, and answers fast enough to try
# things out.
PROFILE = dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test contracts operations watch console soak bench check openapi man fmt deny clean
.PHONY: package package-test image-test manifests

help: ## List these tasks
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; \
	done

run: ## Build and serve with demonstration data (PROFILE=release for an optimised build)
	cargo run --locked --profile $(PROFILE) -- serve --demo

test: ## Run all tests, with a Postgres server of their own unless TEST_DATABASE_URL names one
	tests/with-postgres cargo test --workspace --locked
	$(MAKE) contracts
	$(MAKE) operations
	$(MAKE) watch
	$(MAKE) console

contracts: ## Try the contracts on the running service with Schemathesis and a generated client, from PyPI
	cargo build --locked
	tests/with-postgres tests/with-python tests/contracts/run $(CONTRACTS)

operations: ## Run the commands of the pages on backups, upgrades and roles, under load, on both databases
	cargo build --locked
	tests/with-python tests/operations/run

watch: ## Try alerts and dashboard: the cases of each alert, then a Prometheus that watches Tollgate at work
	tests/with-prometheus tests/watch/check
	cargo build --locked
	tests/with-postgres tests/with-prometheus tests/watch/run

console: ## Try the console in a real Chromium (Debian's), with packages from npm; screenshots go to target/console/
	cargo build --locked
	tests/with-chromium node --test tests/console/console.test.cjs

soak: ## Try the promises under faults, 28 minutes; ROWS='F1 F9 --quick' for some rows, or a small version
	tests/with-postgres cargo test --locked --profile $(if $(filter dev,$(PROFILE)),test,$(PROFILE)) --test soak -- $(ROWS)

bench: ## Measure against the limits of the machine, 16 minutes; ROWS='LADDER AUTH --quick' for some rows, or a small version
	cargo build --locked --release --bin tollgate
	cargo build --locked --release --package bench
	tests/with-postgres $(or $(CARGO_TARGET_DIR),target)/release/bench $(ROWS)

check: ## Check format, lints and the documentation's links
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --test soak --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

openapi: ## Write the contracts in openapi/ anew, after a change to the API
	UPDATE_OPENAPI=1 cargo test --locked --test suite contract

man: ## Write the man pages, the completion and the package's settings anew, after a change to the command line
	UPDATE_PAGES=1 cargo test --locked --test suite pages::the_files

package: ## Build the Debian package
	deploy/debian/build

package-test: ## Try the Debian package in a fresh Debian 12, as root, 3 minutes
	tests/package/run

image-test: ## Try the root folder of the image, as root
	cargo build --locked --bin tollgate
	tests/image/run

manifests: ## Check the files for container engines and Kubernetes, with tools from PyPI and the Go module proxy
	TEST_REQUIREMENTS=tests/manifests/requirements.txt tests/with-python tests/manifests/run

fmt: ## Format the code
	cargo fmt --all

deny: ## Check dependencies: advisories, licences, sources, duplicates
	@cargo deny --version >/dev/null 2>&1 || \
		{ echo 'cargo-deny is missing: cargo install --locked cargo-deny' >&2; exit 1; }
	cargo deny --locked check

clean: ## Remove everything that was built
	cargo clean
