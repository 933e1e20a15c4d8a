package bench

import "fmt"

// fastPath adds the rows of the fast path, and those that are compared with it.
func (r *Report) fastPath(res *results, t timing) {
	r.fastFloods(res, t)
	rate := func(path string, download bool) Sample { return res.streams[streamKey{path, download}] }
	up, down := rate(pathPlain, false), rate(pathPlain, true)
	r.ratio("TCP upload, fast path : plain forwarding", rate(pathFast, false), up, atLeast(0.95))
	r.ratio("TCP upload, fast path with gue : plain forwarding", rate(pathFastGUE, false), up, atLeast(0.95))
	r.ratio("TCP download, fast path : plain forwarding", rate(pathFast, true), down, atLeast(0.97))
	r.ratio("TCP upload, "+pathFastDirector+" : plain forwarding", rate(pathFastDirector, false), up, nil)
	r.ratio("TCP upload, "+pathFastAgent+" : plain forwarding", rate(pathFastAgent, false), up, nil)
	if fast, plain := res.trips[pathFast], res.trips[pathPlain]; fast != nil {
		r.ratio("round trip, median, fast path : plain forwarding", fast.p50, plain.p50, atMost(1.5))
		r.ratio("round trip, 99th percentile, fast path : plain forwarding", fast.p99, plain.p99, nil)
	}
	asked := res.requests
	r.ratio("HTTP requests a second, fast path : plain forwarding", asked[pathFast], asked[pathPlain], atLeast(0.9))
	r.ratio("HTTP requests a second, director : plain forwarding", asked[pathDirectorAll], asked[pathPlain], nil)
	for _, path := range []string{pathPlain, pathDirectorAll, pathFast} {
		r.figure("HTTP, 64 connections, "+path, "requests/s", asked[path])
	}
	r.newConnections(res)
	r.loads(res)
	r.figure("time until a connection is in the fast path", "ms", res.untilFast.times(1e3))
	r.figure("BPF maps of an idle director", "MB", res.idleMaps.times(1e-6))
	r.figure("BPF maps, for each connection in the fast path", "bytes", res.flowMemory)
	r.figure("director's process, for each connection in the fast path", "bytes", res.most.memory)
}

// fastFloods adds the rows of 60-byte packets.
func (r *Report) fastFloods(res *results, t timing) {
	for _, row := range []struct {
		flows int
		bar   *Bar
	}{{1, atLeast(0.9)}, {t.flows, atLeast(0.85)}} {
		fast, plain := res.floods[floodKey{pathFast, row.flows}], res.floods[floodKey{pathPlain, row.flows}]
		if fast == nil {
			return
		}
		name := flowCount(row.flows)
		r.ratio("packets a second, fast path : plain forwarding, "+name, fast.delivered, plain.delivered, row.bar)
		r.figure(pathFast+", "+name, "packets/s", fast.delivered)
		hop := each(fast.cost(), res.floods[floodKey{pathAtDirector, row.flows}].cost(), minus)
		r.figure(fmt.Sprintf("%s, %s: from the director on", pathFast, name), "ns/packet", hop)
	}
	name, many := flowCount(t.most), &res.most
	r.ratio("packets a second, fast path : plain forwarding, "+name, many.fast, many.plain, atLeast(0.6))
	r.figure(pathFast+", "+name, "packets/s", many.fast)
	r.figure(pathPlain+", "+name, "packets/s", many.plain)
	r.figure("connections in the fast path, of "+name, "connections", many.connections)
}

// newConnections adds the rows of new connections, which are too short for the fast path.
func (r *Report) newConnections(res *results) {
	fast, off := &res.connsFast, &res.connsOff
	r.ratio("CPU time of a new connection, fast path : without", fast.total, off.total, atMost(1.05))
	r.ratio("CPU time of a new connection, process, fast path : without", fast.process, off.process, nil)
	r.figure("new connection, with fast path", "ns", fast.total)
	r.figure("new connection, without fast path", "ns", off.total)
	r.figure("new connection, with fast path: director's process", "ns", fast.process)
	r.figure("new connection, without fast path: director's process", "ns", off.process)
}

// loads adds the rows of TCP at a constant rate.
func (r *Report) loads(res *results) {
	for _, d := range []struct {
		name     string
		download bool
	}{{"upload", false}, {"ACKs of a download", true}} {
		for _, path := range []string{pathPlain, pathDirectorAll, pathFast} {
			l := res.loads[streamKey{path, d.download}]
			if l == nil {
				continue
			}
			name := "CPU at 1 Gbit/s, " + d.name + ", " + path
			r.figure(name+": machine", "% of a CPU", l.machine.times(100))
			r.figure(name+": process", "% of a CPU", l.process.times(100))
		}
	}
}

// kernelIPVS adds the rows of the kernel's own IPVS.
func (r *Report) kernelIPVS(res *results, many int) {
	const name, against = pathIPVS, pathIPVS + " : plain forwarding"
	for _, n := range []int{1, many} {
		ipvs, plain := res.floods[floodKey{name, n}], res.floods[floodKey{pathPlain, n}]
		if ipvs == nil {
			return
		}
		flows := flowCount(n)
		r.ratio("packets a second, "+against+", "+flows, ipvs.delivered, plain.delivered, nil)
		r.figure(name+", "+flows, "packets/s", ipvs.delivered)
		hop := each(ipvs.cost(), res.floods[floodKey{pathAtDirector, n}].cost(), minus)
		r.figure(fmt.Sprintf("%s, %s: from the director on", name, flows), "ns/packet", hop)
	}
	r.ratio("TCP upload, "+against, res.streams[streamKey{name, false}], res.streams[streamKey{pathPlain, false}], nil)
	if ipvs, plain := res.trips[name], res.trips[pathPlain]; ipvs != nil {
		r.ratio("round trip, median, "+against, ipvs.p50, plain.p50, nil)
		r.ratio("round trip, 99th percentile, "+against, ipvs.p99, plain.p99, nil)
	}
}
