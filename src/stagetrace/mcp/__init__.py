"""The questions of the commands as tools for agents, by the Model Context Protocol. It only reads."""
