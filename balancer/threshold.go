package balancer

// available reports whether d may get a new connection: it has a weight, and is not overloaded.
func (d *Dest) available() bool { return d.Weight > 0 && !d.overloaded() }

// overloaded reports whether d has reached Upper connections and is not below Relief again (Linux ip_vs_conn.c,
// ip_vs_bind_dest and ip_vs_unbind_dest). IPVS checks whenever a connection ends. A check at each call and at each new
// connection gives the same result, since the number only falls between two new connections.
func (d *Dest) overloaded() bool {
	return d.Upper > 0 && d.stats.overloaded.Load() && !d.relieved(d.counts.Active()+d.counts.Inactive())
}

// Relief is the number of connections below which an overloaded realserver gets new ones again.
func (r *Realserver) Relief() int {
	if r.Lower > 0 {
		return r.Lower
	}
	return (r.Upper*3 + 3) / 4
}

// relieved reports whether n connections are below Relief. If so it clears the overload.
func (d *Dest) relieved(n int) bool {
	if n >= d.Relief() {
		return false
	}
	d.stats.overloaded.Store(false)
	return true
}

// bound updates the overload of d after a new connection.
func (d *Dest) bound() {
	if d.Upper == 0 {
		return
	}
	n := d.counts.Active() + d.counts.Inactive()
	if d.stats.overloaded.Load() {
		d.relieved(n - 1)
	}
	if n >= d.Upper {
		d.stats.overloaded.Store(true)
	}
}
