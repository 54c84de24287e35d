// Package api is org.lodgehv.Lodge1, the manager on D-Bus: what the command line, the consoles and other programs use.
//
// What there is stands in tables (interfaces.go and the files of the objects), from which calls are checked and the descriptions
// in docs/api are generated. A call is refused before anything is looked at unless its arguments have the very types that the
// table says, its sender has few enough calls under way, and polkit allows it the class of operation that the method belongs to.
// So a stranger does not even learn which guests there are; signals go to subscribers only, one by one.
package api
