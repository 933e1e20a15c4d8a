package query

import "vstun/routing/kernel/kerneltest"

// Helpers of kerneltest by short names. NewHost has a drawing of a test's host.
var (
	newHost      = kerneltest.NewHost
	enterNewHost = kerneltest.EnterNewHost
	must         = kerneltest.Must
	named        = kerneltest.Named
	cidr         = kerneltest.CIDR
	linkOf       = kerneltest.LinkOf
	linkUp       = kerneltest.LinkUp
	addAddr      = kerneltest.AddAddr
	setSysctl    = kerneltest.SetSysctl
	quickest     = kerneltest.Quickest
)
