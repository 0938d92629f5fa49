"""Contract suites and stateful fakes for plug-in authors."""
