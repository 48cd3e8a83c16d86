"""What contains a plugin's process: namespaces, Landlock, seccomp, limits, a uid of its own.

`launcher.SandboxLauncher` is the door. `policy` says what is asked, `ability` what this machine can
do (found out by doing), `view` what the process sees, `command` how it is started, `checks` what
the host reads about it before it gets its token.
"""
