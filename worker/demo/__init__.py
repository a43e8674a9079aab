"""The demo: the whole job on one machine, in accelerated time, with an outage in the middle.

A simulated Cloudflare API, the worker with a ledger in a temporary folder, and a receiver: Prometheus where there is
one, else one in memory. At the end every zone's windows are counted, and every sample is read back from the receiver
and compared with what Cloudflare has.

Promises that nothing leaves the machine, that nothing of the user's environment is read, and that nothing is left
behind, neither a process nor a file, however it ends.

    timetable   which windows there are, and what happens when
    clock       simulated time
    receivers   the receiver, which can be taken down and brought back
    leash       ends a program when the demo ends
    outcome     what there is to tell at the end
    display     how it looks, on a terminal and without one
    show        puts it on stage
"""
