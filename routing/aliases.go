package routing

import "vstun/routing/query"

// The questions of package query under their former names, for callers that have not moved yet.
type Path = query.Path

var (
	Paths     = query.Paths
	LocalAddr = query.LocalLink
	Dropped   = query.Dropped
	HasIPv6   = query.HasIPv6
	HasRules  = query.HasRules
)
