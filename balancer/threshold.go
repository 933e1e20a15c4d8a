package balancer

// available tells whether d may get a new connection: it has a weight, and is not overloaded.
func (d *Dest) available() bool { return d.Weight > 0 && !d.overloaded() }

// overloaded tells whether d has had as many connections as Upper allows and not yet few enough again (Linux ip_vs_conn.c, ip_vs_bind_dest and
// ip_vs_unbind_dest). IPVS looks whenever a connection ends; between two new connections the number only falls, so that to look
// before each new one gives the same.
func (d *Dest) overloaded() bool {
	if d.Upper == 0 || !d.stats.overloaded.Load() {
		return false
	}
	n := d.counts.Active() + d.counts.Inactive()
	if d.Lower > 0 && n < d.Lower || d.Lower == 0 && n*4 < d.Upper*3 {
		d.stats.overloaded.Store(false)
		return false
	}
	return true
}

// bound notes that d has a connection more.
func (d *Dest) bound() {
	if d.Upper > 0 && d.counts.Active()+d.counts.Inactive() >= d.Upper {
		d.stats.overloaded.Store(true)
	}
}
