// Package packet is bytes: a buffer with room for tunnel headers, views over headers, checksums, the key of a flow, and
// the reasons for which a packet is refused. It imports nothing else of vstun.
package packet
