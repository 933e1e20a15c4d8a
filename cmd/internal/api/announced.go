package api

// Announced is a VIP that the director answers ARP or neighbour discovery for.
type Announced struct {
	VIP       string     `json:"vip"`
	Devices   []string   `json:"devices"`
	Conflicts []Conflict `json:"conflicts,omitempty"` // since the start
}

// Conflict is another host's use of a VIP on a device.
type Conflict struct {
	Device  string  `json:"device"`
	MAC     string  `json:"mac"` // of the last packet
	Packets uint64  `json:"packets"`
	Last    float64 `json:"last_seconds_ago"`
}

// Neighbours counts packets of ARP and neighbour discovery for VIPs.
type Neighbours struct {
	Answers       uint64 `json:"answers"`
	Announcements uint64 `json:"announcements"` // gratuitous ARP, unsolicited advertisements
	Conflicts     uint64 `json:"conflicts"`     // packets by which other hosts use a VIP
	Failed        uint64 `json:"failed"`        // answers and announcements that the kernel refused to send
}
