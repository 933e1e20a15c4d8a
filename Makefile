# make demo | test | race | busy | long | slowpath | uploads | tunnels | rate | ha | bulk | kills | restarts | soak | interop | bench | trace | build | install | uninstall | package | image | release | arm64 | lint | fuzz | bpf | deps | clean

GO       ?= go
FUZZTIME ?= 30s

export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

.PHONY: all build install uninstall package image release arm64 demo test race busy long slowpath uploads tunnels rate ha bulk kills restarts soak interop bench trace lint fuzz bpf deps clean
all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/director ./cmd/realserver ./cmd/lab

# Both programs with units, manual pages, completions and examples: below PREFIX, and that below DESTDIR. PROGRAMS=director is only for that host.
PREFIX   ?= /usr/local
PROGRAMS ?= director realserver
install: build
	DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" .ci/install bin $(PROGRAMS)

uninstall:
	DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" .ci/install --remove bin $(PROGRAMS)

# Packages of both for this machine, in bin/: deb, rpm and apk, or FORMATS. DEBFULLNAME and DEBEMAIL are their maintainer.
package:
	.ci/package bin

# The OCI image of both, for amd64 and arm64, as bin/vstun-image.tar: podman load -i bin/vstun-image.tar
image:
	.ci/image bin

# All files of a release for amd64 and arm64, with checksums and SBOMs, in bin/release. One commit gives the same bytes everywhere.
release:
	.ci/release bin/release

# Five hosts in network namespaces, the real programs, requests through the VIP. `make demo STAY=1` leaves it up; IPV6=1 is for IPv6;
# LAN=1 puts the VIP into the director's subnet; HA=1 has two directors there, one of which is killed. TUNNEL=1 connects two sites by point-to-point tunnels.
demo: build
	bin/lab demo $(if $(STAY),--stay) $(if $(IPV6),--ipv6) $(if $(LAN),--lan) $(if $(HA),--ha) $(if $(TUNNEL),--tunnel)

# Unit tests, and, as root, the end-to-end tests in network namespaces.
test: deps
	GO=$(GO) .ci/test

# The same with the race detector, in the programs, too.
race: deps
	$(if $(shell command -v gcc),$(GO) test -race -short -timeout 30m ./...,@echo "SKIPPED: go test -race needs gcc")

# The end-to-end tests beside four busy loops, RUNS times. RUN=NAME is for the tests whose names match. The machine should have nothing else to
# do: the kernel gives the programs of another session as much time as all of these together, and lets one of these wait for seconds.
busy: deps
	.ci/busy $(or $(RUNS),1) $(RUN)

# The long forms of tests that make test has short: more packets, reloads, requests and time; lintian; two releases.
LONG := TestAgentReload|TestCompose|TestConnectionStays|TestDeathUnderLoad|TestDemo|TestDrainWait|TestHostileRealserver|TestHostRestored|TestKeptConnections|TestKubernetesPods|TestPackages|TestReloadStorm|TestWireGuardGoesOn
long: deps
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 40m -run '^($(LONG))$$|^TestChecksInFlood$$/^(10vips|narrow)$$' -v ./cmd/internal/e2e
	VSTUN_FULL=1 $(GO) test -count=1 -run '^TestRefused$$' -v ./encap/wireguard
	VSTUN_FULL=1 $(GO) test -count=1 -v ./cmd/internal/bench
	VSTUN_FULL=1 $(GO) test -count=1 -run '^(TestHostileFiles|TestEachStore)$$' -v ./cmd/internal/migrate ./balancer/conntab
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 30m -parallel 1 -run '^(TestImage|TestRelease)$$' -v ./cmd/internal/e2e

# Unit tests of the packages without devices, netlink, BPF and raw sockets, as arm64 programs, by qemu-user.
arm64: deps
	GO=$(GO) .ci/arm64

# The tests of the packet path without the fast path in the kernel: at both ends, or with OFF=director or OFF=realserver at one.
SLOWPATH := Answers|ConnectionStays|Distribution|Download|Fragments|Hostile|HostRestored|ICMPv6|LeftConnections|LocalNode|Methods|Mixed|NAT|Offloads|OnePacket|Path|Ping|TAP|Tunnel|UDP|Upload|Whole
slowpath: deps
	VSTUN_E2E_FAST_PATH=$(or $(OFF),off) $(GO) test -count=1 -timeout 20m -run '^Test($(SLOWPATH))' ./cmd/internal/e2e

# 100 MB, compared byte by byte, with and without offloads: up through every tunnel, with either IP inside and outside, over three MTUs; up and
# down by every forwarding method, with IPv4 and IPv6, over two MTUs; with every way to find the path's MTU.
uploads:
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 40m -run '^(TestTunnels|TestMethods|TestUpload|TestDownload|TestOffloads|TestWireGuard|TestWireGuardGo)$$' -v ./cmd/internal/e2e

# 100 MB, compared byte by byte, up and down through point-to-point tunnels: TUN and TAP, every encapsulation, both families inside and outside,
# two MTUs, with and without offloads; ten minutes.
tunnels:
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 40m -run '^TestPeerTunnels$$' -v ./cmd/internal/e2e

# 10,000 connections a second by nat for 30 s: none may lose a packet. The machine should have nothing else to do.
rate:
	VSTUN_FULL=1 $(GO) test -count=1 -run '^TestConnectionRate$$' -v ./cmd/internal/e2e

# Two directors stand in for each other, under 1,000 downloads, 500 idle connections and 500 requests a second; and how long a failover takes.
# Three directors behind BGP: one is killed, cut off, stopped and started under 1,000 downloads and 500 requests a second, and a fourth one takes
# the place of another; two routers at a time; 1,000 VIPs.
ha:
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 20m -run '^(TestHA|TestVRRPFailoverTime|TestVRRPPlannedSwitch)$$' -v ./cmd/internal/e2e
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 20m -parallel 1 -run '^TestBGP(Spread|Downloads|ManyVIPs)$$' -v ./cmd/internal/e2e

# Round trips while a new peer gets a million connections: the 99th percentile does not double. The machine should have nothing else to do.
bulk:
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 20m -run '^TestBulkRoundTrip$$' -v ./cmd/internal/e2e

# kill -9 at 1,000 random moments under load: each time the next process takes the connections over.
kills:
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 20m -run '^TestKill$$' -v ./balancer

# systemd restarts the director, and starts it after kill -9, under 1,000 downloads and 500 requests a second: nothing breaks, nothing stalls for
# longer than half a second. The machine should have nothing else to do.
restarts:
	VSTUN_FULL=1 $(GO) test -count=1 -run '^TestRestartUnderLoad$$' -v ./cmd/internal/e2e

# Ten minutes of checks, failures and reloads, after which nothing may be left behind.
soak:
	VSTUN_FULL=1 $(GO) test -count=1 -timeout 20m -run '^TestSoak$$' -v ./cmd/internal/e2e

# Against the kernel's own IPVS and tunnels, in a guest that has them: REF_BOOT is the script that boots it.
interop: deps
	.ci/interop

# The packet path against plain forwarding, in a table with the bars; under twelve minutes. `make bench QUICK=1` only checks that it works;
# `make bench AGAINST=DIR` compares the programs with those of another version, which are in DIR; `make bench GUEST=1` measures the kernel's
# own IPVS, and what else the kernel forwards, in the guest of interop.
bench: build $(if $(GUEST),deps,bin/wireguard-go)
	$(if $(GUEST),.ci/bench-guest,bin/lab bench) $(if $(QUICK),--quick) $(if $(AGAINST),--against $(AGAINST))

# wireguard-go's own program, of the version that the programs have as a library: measurements compare them with it.
bin/wireguard-go: go.mod
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ golang.zx2c4.com/wireguard

# Where the time of a round trip through the TUN device goes, by the kernel's tracing; a few seconds.
trace: build
	bin/lab trace

lint:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./... ./testdata/testkit
	$(GO) -C .ci/tools vet ./...
	$(GO) tool staticcheck ./... ./testdata/testkit
	staticcheck=$$($(GO) tool -n staticcheck) && cd .ci/tools && "$$staticcheck" ./...
	$(GO) run ./cmd/internal/lint

fuzz:
	.ci/fuzz $(FUZZTIME)

# Compiles encap/bpf's programs anew; the objects are in the repository, so that nothing else needs clang. The tests compile
# them, too, and compare the two by their packets.
bpf: deps
	.ci/bpf

# What the end-to-end tests need beside Go; without root and apt-get they skip what is missing, and say so.
deps:
	.ci/deps

clean:
	rm -rf bin
