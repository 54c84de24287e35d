// Command fakeseat stands for lodge-seat in a test of the appliance: it prints its configuration; at its first start it is killed
// then, later it runs.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[len(os.Args)-1]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(config string) error {
	b, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", b)
	const been = "/run/fakeseat"
	if _, err := os.Stat(been); err == nil {
		fmt.Println("runs again")
		time.Sleep(time.Hour)
	}
	if err := os.WriteFile(been, nil, 0o600); err != nil {
		return err
	}
	fmt.Println("is killed")
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}
