// Package packet is a packet's bytes: buffers, views over headers, checksums, flows, splitting and ICMP errors.
//
// A GSO packet stands for several packets with the same headers (generic segmentation offload): the headers of one, and
// the payloads of all. The kernel gives and takes such packets of up to 64 KB; Offload says what is left to do in one.
package packet
