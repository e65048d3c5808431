// TEST DOUBLE, never deploy: stands for the front end's logout script
