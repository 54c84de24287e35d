// Command webmail is package webmail on ports 80 and 143 of an address: webmail ADDRESS.
package main

import (
	"fmt"
	"log"
	"net"
	"os"

	"github.com/lodgehv/lodge/e2e/webmail"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: webmail ADDRESS")
	}
	var listeners []net.Listener
	for _, port := range []string{"80", "143"} {
		l, err := net.Listen("tcp", net.JoinHostPort(os.Args[1], port))
		if err != nil {
			log.Fatal(err)
		}
		listeners = append(listeners, l)
	}
	fmt.Println("ready")
	log.Fatal(webmail.Serve(listeners[0], listeners[1], os.Stdout))
}
