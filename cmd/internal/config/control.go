package config

// ControlSocket reads the path of the control socket from the file of a program, "director" or "realserver". It ignores
// faults of other keys: commands need the socket of a file with faults, too. An error that is no *Errors means that the
// file cannot be read.
func ControlSocket(path, program string) (string, error) {
	text, err := Read(path)
	if err != nil {
		return "", err
	}
	return ControlSocketIn(path, text, program)
}

// ControlSocketIn is ControlSocket for a text. name stands for it in faults.
func ControlSocketIn(name string, text []byte, program string) (string, error) {
	root, ok := parse(name, text)
	if ok {
		socket := readControl(root.table(program, wantTable[program]), program)
		if len(root.file.faults) == 0 {
			return socket, nil
		}
	}
	return "", &root.file.faults
}

// KeptTable reads from the file of a director where its connection table outlives it. Like ControlSocket it ignores
// faults of other keys. control is the path of the control socket. If c.KeepBeside, c.Keep is beside it. c has no other
// value.
func KeptTable(path, control string) (c Connections, err error) {
	text, err := Read(path)
	if err != nil {
		return c, err
	}
	root, ok := parse(path, text)
	if ok {
		c.Keep, c.KeepBeside = readKeep(root.table("connections", wantConnections), control)
	}
	if len(root.file.faults) > 0 {
		return Connections{}, &root.file.faults
	}
	return c, nil
}

// wantTable describes a program's own table.
var wantTable = map[string]string{
	"director":   "a [director] table",
	"realserver": "a [realserver] table with vips and directors",
}

// DefaultControl returns the control socket of a program, "director" or "realserver", whose file names none.
func DefaultControl(program string) string { return "/run/vstun/" + program + ".sock" }

func readControl(t *table, program string) string {
	return t.socket("control", DefaultControl(program))
}
