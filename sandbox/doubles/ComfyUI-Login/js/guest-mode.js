// TEST DOUBLE, never deploy: stands for the front end's guest-mode script
